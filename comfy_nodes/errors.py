"""Errors of a node: one sentence for ComfyUI's error dialog, and a report in the log for unexpected ones."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

HOST_HANDLES = ("InterruptProcessingException", "OutOfMemoryError")
"""Errors of ComfyUI and torch that are not a node's fault: the user pressed Cancel, or the memory is full."""

R = TypeVar("R")


class NodeError(ValueError):
    """An expected error. The message names the file or input, the problem and the remedy."""

    __module__ = "scribble_lora"  # ComfyUI shows the full name of the type; the real module name is this folder's path


def reported(work: Callable[..., R]) -> Callable[..., R]:
    """Wrap a node's function: log one panel for an error other than `NodeError`, and reraise every error."""

    @functools.wraps(work)
    def run(self: object, *values: object, **arguments: object) -> R:  # ComfyUI passes all inputs by name
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
