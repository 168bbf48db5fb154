"""The script's arguments, from the page or an API call: by position, in an order that never changes, or by name.

    "alwayson_scripts": {"Scribble LoRA": {"args": [true, "scribble", 0.8, false]}}
    "alwayson_scripts": {"Scribble LoRA": {"args": [{"enabled": true, "adapter": "scribble", "scale": 0.8}]}}
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

NO_ADAPTER = "None"
"""The dropdown's entry for no adapter. A file with that name is entered in full: None.safetensors."""

MIN_SCALE, MAX_SCALE, DEFAULT_SCALE = 0.0, 1.5, 0.8
"""Scale 0 is the base alone, 1 the LoRA as trained; the default is the paper's."""


class Argument(NamedTuple):
    """One argument; its index in `ARGUMENTS` is its position. API clients depend on the order: only append."""

    name: str
    default: bool | str | float | None
    schema: Mapping[str, object]
    """its type as JSON Schema"""
    description: str


ARGUMENTS = (
    Argument("enabled", False, {"type": "boolean"}, "apply the adapter"),
    Argument("adapter", NO_ADAPTER, {"type": "string"},
             "a LoRA file as listed by GET /sdapi/v1/loras, with or without its extension; None means no adapter"),
    Argument("scale", None, {"type": ["number", "null"], "minimum": MIN_SCALE, "maximum": MAX_SCALE},
             f"0 is the base alone, 1 the LoRA as trained; null is the file's recommended scale, else {DEFAULT_SCALE:g}"),
    Argument("use_trigger_words", False, {"type": "boolean"}, "start the prompt with the file's trigger words"),
)  # fmt: skip


class BadRequest(ValueError):
    """One line with the argument's name, the expected value and the given one."""


@dataclass(frozen=True)
class Request:
    """An adapter to apply."""

    adapter: str
    """its file's name, as given"""
    scale: float | None
    """None for the file's recommended scale"""
    use_trigger_words: bool


def json_schema() -> dict[str, object]:
    """JSON Schema of the arguments by name."""
    properties = {one.name: {**one.schema, "default": one.default, "description": one.description} for one in ARGUMENTS}
    return {"title": "Scribble LoRA", "type": "object", "properties": properties, "additionalProperties": False}


def parse(args: Sequence[object], *, adapter: object = None, scale: object = None) -> Request | None:
    """Parse a script's arguments. None if the script is switched off.

    Args:
        args: the values in the order of `ARGUMENTS`, or one mapping of names to values; missing ones take their defaults.
        adapter, scale: set by an axis of the X/Y/Z plot; either switches the script on and overrides `args`.

    Raises:
        BadRequest: a name is unknown, or a value has the wrong type or is out of range. If the script is switched off,
            only names and `enabled` are checked.
    """
    given = _by_name(args[0]) if args and isinstance(args[0], Mapping) else _by_position(args)
    enabled = _flag("enabled", given["enabled"]) or adapter is not None or scale is not None
    if not enabled:
        return None
    name = _name(given["adapter"] if adapter is None else adapter)
    if name == NO_ADAPTER and adapter is not None:
        return None  # a cell of the plot without an adapter
    if name == NO_ADAPTER:
        raise BadRequest("nothing was applied: no adapter is chosen; choose one, or switch Scribble LoRA off")
    number = parse_scale(given["scale"] if scale is None else scale)
    return Request(name, number, _flag("use_trigger_words", given["use_trigger_words"]))


def _by_position(args: Sequence[object]) -> dict[str, object]:
    return {one.name: args[place] if place < len(args) else one.default for place, one in enumerate(ARGUMENTS)}


def _by_name(given: Mapping[str, object]) -> dict[str, object]:
    known = [one.name for one in ARGUMENTS]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the arguments are {', '.join(known)}"
        raise BadRequest(f"{_shown(unknown)} is not an argument; {hint}")
    return {one.name: given.get(one.name, one.default) for one in ARGUMENTS}


def parse_scale(value: object) -> float | None:
    """A scale from 0 to 1.5, or None. Raises `BadRequest` for anything else."""
    if value is None:
        return None
    limits = f"{MIN_SCALE:g} to {MAX_SCALE:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRequest(f"scale must be a number from {limits}, or null for the file's own, not {_shown(value)}")
    if not MIN_SCALE <= value <= MAX_SCALE:
        raise BadRequest(f"scale must be from {limits}, not {_shown(value)}; a <lora:…> tag takes any number")
    return float(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false, not {_shown(value)}")
    return value


def _name(value: object) -> str:
    if value is None or value == "":
        return NO_ADAPTER
    if not isinstance(value, str):
        raise BadRequest(f"adapter must be the name of a LoRA file, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
