"""What the page or an API call asks for, validated. The order of the arguments stands in people's programs: only append.

    "alwayson_scripts": {"Scribble LoRA": {"args": [enabled, adapter, scale, use_trigger_words]}}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOBODY = "None"
"""What the dropdown shows while no adapter is chosen."""

LEAST, MOST, USUAL = 0.0, 1.5, 0.8
"""The scale: 0 is the base alone, 1 the LoRA as trained; the usual one is the paper's."""


class BadRequest(ValueError):
    """One line that names the argument, says what was expected and what came."""


@dataclass(frozen=True)
class Request:
    """An adapter to apply."""

    adapter: str
    """its file's name without the ending"""
    scale: float | None
    """None: what the file recommends"""
    use_trigger_words: bool


def parse(args: Sequence[Any], *, adapter: object = None, scale: object = None) -> Request | None:
    """The request in a script's arguments, None where it is switched off.

    Args:
        args: [enabled, adapter, scale, use_trigger_words]; what is missing has its default.
        adapter, scale: set by an axis of the X/Y/Z plot; either switches the request on, and goes before `args`.

    Raises:
        BadRequest: a value is of the wrong kind or out of range. What is switched off is not looked at.
    """
    given = (*args, *(False, NOBODY, None, False)[len(args) :])
    enabled = _flag("enabled", given[0]) or adapter is not None or scale is not None
    if not enabled:
        return None
    name = _name(given[1] if adapter is None else adapter)
    if name == NOBODY and adapter is not None:
        return None  # a cell of the plot without any
    if name == NOBODY:
        raise BadRequest("is enabled and no adapter is chosen, so nothing was applied: choose one")
    return Request(name, parse_scale(given[2] if scale is None else scale), _flag("use_trigger_words", given[3]))


def parse_scale(value: object) -> float | None:
    """A scale between 0 and 1.5; None stays None. `BadRequest` for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRequest(f"scale must be a number from {LEAST:g} to {MOST:g}, or null for the file's own, not {_shown(value)}")
    if not LEAST <= value <= MOST:
        raise BadRequest(f"scale must be from {LEAST:g} to {MOST:g}, not {_shown(value)}; a <lora:…> tag takes any number")
    return float(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false, not {_shown(value)}")
    return value


def _name(value: object) -> str:
    if value is None or value == "":
        return NOBODY
    if not isinstance(value, str):
        raise BadRequest(f"adapter must be the name of a LoRA file, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
