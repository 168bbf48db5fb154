"""What is written into a picture's infotext, and how it comes back into the page and the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from . import prompts
from .request import Request

ENABLED = "Scribble LoRA enabled"
ADAPTER = "Scribble LoRA adapter"  # not "Scribble LoRA": the web UI drops a value that is the same as its key
SCALE = "Scribble LoRA scale"
TRIGGER = "Scribble LoRA trigger words"
ERROR = "Scribble LoRA error"

WRITTEN = (ADAPTER, SCALE, TRIGGER, ERROR)
"""Keys of `extra_generation_params` that are ours."""


def write(params: MutableMapping[str, Any], request: Request | None, scale: float = 0.0) -> None:
    """Set our keys for this picture and remove those of one before it."""
    clear(params)
    if request is not None:
        params[ADAPTER] = request.adapter
        params[SCALE] = prompts.number(scale)
        if request.use_trigger_words:
            params[TRIGGER] = "True"


def clear(params: MutableMapping[str, Any]) -> None:
    """Remove our keys: one run of the X/Y/Z plot shares them with the next."""
    for key in WRITTEN:
        params.pop(key, None)


class Field(str):
    """A field's name that is also the function which reads it.

    The web UI sends fields to another tab by comparing names, and pastes by name or by calling; this one does both, so that
    an infotext without us switches us off.
    """

    read: Callable[[Mapping[str, Any]], Any]

    def __new__(cls, name: str, read: Callable[[Mapping[str, Any]], Any]) -> Field:
        field = super().__new__(cls, name)
        field.read = read
        return field

    def __call__(self, params: Mapping[str, Any]) -> Any:
        return self.read(params)


def _scale(params: Mapping[str, Any]) -> float | None:
    try:
        return float(params[SCALE])
    except (KeyError, TypeError, ValueError):
        return None


FIELDS = (
    Field(ENABLED, lambda params: ADAPTER in params),
    Field(ADAPTER, lambda params: params.get(ADAPTER)),
    Field(SCALE, _scale),
    Field(TRIGGER, lambda params: params.get(TRIGGER) == "True" if ADAPTER in params else None),
)
"""In the order of the script's arguments."""


def pasted(params: MutableMapping[str, Any], resolve: Callable[[str], str | None], by_hash: Mapping[str, str]) -> str | None:
    """Make a pasted infotext ours: the controls get the adapter, so its tag leaves the prompts.

    Args:
        params: the parsed infotext, changed in place.
        resolve: the file a name stands for in a tag, None where there is none.
        by_hash: short hash -> file name, for a file that has been renamed since.

    Returns:
        What the user should know, where the adapter is not here: then the infotext is left as a hand-written tag.
    """
    name = params.get(ADAPTER)
    if name is None:
        return None
    found = name if resolve(name) == name else by_hash.get(_hashes(params).get(name.translate(_NO_MARKS), ""))
    if found is None:
        clear(params)
        return f"the pasted picture used {name}, which is not in the LoRA folder"
    params[ADAPTER] = found
    for key in ("Prompt", "Hires prompt"):
        if params.get(key):
            params[key] = prompts.without(params[key], lambda tagged: tagged == name or resolve(tagged) == found)
    return None


_NO_MARKS = str.maketrans("", "", ":,")
"""The web UI leaves these out of the names in "Lora hashes"."""


def _hashes(params: Mapping[str, Any]) -> dict[str, str]:
    pairs = (part.rpartition(":") for part in str(params.get("Lora hashes", "")).split(","))
    return {name.strip(): digest.strip() for name, _, digest in pairs if name}
