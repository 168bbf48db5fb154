"""Our values in a picture's infotext: writing them, and reading them back into the page or an API call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

from . import prompts

ADAPTER = "Scribble LoRA adapter"  # not "Scribble LoRA": the web UI drops a value that equals its key
SCALE = "Scribble LoRA scale"
TRIGGER = "Scribble LoRA trigger words"
ERROR = "Scribble LoRA error"
NOTICE = "Scribble LoRA notice"

APPLIED = (ADAPTER, SCALE, TRIGGER)

Params = MutableMapping[str, object]
"""The web UI's `extra_generation_params`, or a parsed infotext, with other extensions' values of any type."""


def write(params: Params, adapter: str, scale: float, use_trigger_words: bool) -> None:
    """Set our keys for this picture."""
    params.update({ADAPTER: adapter, SCALE: prompts.number(scale)})
    if use_trigger_words:
        params[TRIGGER] = "True"


def clear(params: Params) -> None:
    """Remove our keys, because the cells of an X/Y/Z plot share one dict."""
    for key in (*APPLIED, ERROR, NOTICE):
        params.pop(key, None)


def fail(params: Params, text: str, *, nothing_applied: bool = True) -> None:
    """Write the error; if nothing was applied, remove our other keys."""
    for key in APPLIED if nothing_applied else ():
        params.pop(key, None)
    _add(params, ERROR, text)


def notice(params: Params, text: str) -> None:
    """Write a notice about a picture that is drawn."""
    _add(params, NOTICE, text)


def _add(params: Params, key: str, text: str) -> None:
    before = params.get(key)
    if not before:
        params[key] = text
    elif text not in str(before):
        params[key] = f"{before}; {text}"


def pasted_enabled(params: Mapping[str, object]) -> bool:
    """An infotext without our keys switches the script off."""
    return ADAPTER in params


def pasted_adapter(params: Mapping[str, object]) -> str | None:
    """The dropdown's entry, or None to leave it unchanged."""
    return str(params[ADAPTER]) if ADAPTER in params else None


def pasted_scale(params: Mapping[str, object]) -> float | None:
    """The slider's value, or None to leave it unchanged."""
    try:
        return float(str(params[SCALE]))
    except (KeyError, ValueError):
        return None


def pasted_trigger(params: Mapping[str, object]) -> bool | None:
    """The trigger words checkbox, or None to leave it unchanged."""
    return params.get(TRIGGER) == "True" if ADAPTER in params else None


FIELDS = (pasted_enabled, pasted_adapter, pasted_scale, pasted_trigger)
"""Readers of a parsed infotext, in the order of the script's arguments."""


def pasted(params: Params, find: Callable[[str], str | None], by_hash: Mapping[str, str]) -> str | None:
    """Move the adapter of a pasted infotext from its tag in the prompts to our controls.

    Args:
        params: the parsed infotext, changed in place.
        find: returns the file for the name of an adapter or tag, None if there is none.
        by_hash: short hash -> file, for files that have been renamed since.

    Returns:
        The name of a missing adapter, whose tag then stays in the prompt; None if it was found.
    """
    if params.get(ADAPTER) is None:
        return None
    name = str(params[ADAPTER])
    found = find(name) or by_hash.get(_hashes(params).get(name.translate(_NO_MARKS).strip(), ""))
    if found is None:
        clear(params)
        return name
    params[ADAPTER] = found
    for key in ("Prompt", "Hires prompt"):
        if params.get(key):
            params[key] = prompts.without(str(params[key]), lambda tagged: tagged == name or find(tagged) == found)
    return None


_NO_MARKS = str.maketrans("", "", ":,")
"""Characters that the web UI removes from the names in "Lora hashes"."""


def _hashes(params: Mapping[str, object]) -> dict[str, str]:
    pairs = (part.rpartition(":") for part in str(params.get("Lora hashes", "")).split(","))
    return {name.strip(): digest.strip() for name, _, digest in pairs if name}
