"""How a node fails: in one sentence that ComfyUI shows in its error dialog; and a report of failures nobody foresaw."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

HOST_HANDLES = ("InterruptProcessingException", "OutOfMemoryError")
"""Errors of ComfyUI and torch that are not faults of a node: the user pressed Cancel, or the memory is full."""

R = TypeVar("R")


class NodeError(ValueError):
    """The message names the file or input, says what is wrong and what to do."""

    __module__ = "scribble_lora"  # ComfyUI shows the full name of the type; the real one is the path of this folder


def reported(work: Callable[..., R]) -> Callable[..., R]:
    """A node's function that logs one panel for an error other than `NodeError`, and passes every error on."""

    @functools.wraps(work)
    def run(self: object, *values: object, **arguments: object) -> R:  # ComfyUI gives all of them by name
        try:
            return work(self, *values, **arguments)
        except NodeError:
            raise
        except Exception as error:
            if type(error).__name__ not in HOST_HANDLES:
                from .panel import panel

                logging.error("%s", panel(type(self).__name__, arguments, error))
            raise

    return run
