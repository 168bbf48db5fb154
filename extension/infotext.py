"""What is written into a picture's infotext, and how it comes back into the page and the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

from . import prompts

ADAPTER = "Scribble LoRA adapter"  # not "Scribble LoRA": the web UI drops a value that is the same as its key
SCALE = "Scribble LoRA scale"
TRIGGER = "Scribble LoRA trigger words"
ERROR = "Scribble LoRA error"
NOTICE = "Scribble LoRA notice"

APPLIED = (ADAPTER, SCALE, TRIGGER)

Params = MutableMapping[str, object]
"""`extra_generation_params` of the web UI, or a parsed infotext: other extensions' values too, of any type."""


def write(params: Params, adapter: str, scale: float, use_trigger_words: bool) -> None:
    """Set our keys for this picture."""
    params.update({ADAPTER: adapter, SCALE: prompts.number(scale)})
    if use_trigger_words:
        params[TRIGGER] = "True"


def clear(params: Params) -> None:
    """Remove our keys: one run of the X/Y/Z plot shares them with the next."""
    for key in (*APPLIED, ERROR, NOTICE):
        params.pop(key, None)


def fail(params: Params, text: str, *, nothing_applied: bool = True) -> None:
    """Write what went wrong; if nothing was applied, our other keys go."""
    for key in APPLIED if nothing_applied else ():
        params.pop(key, None)
    _add(params, ERROR, text)


def notice(params: Params, text: str) -> None:
    """Write what is worth knowing of a file that was applied."""
    _add(params, NOTICE, text)


def _add(params: Params, key: str, text: str) -> None:
    before = params.get(key)
    if not before:
        params[key] = text
    elif text not in str(before):
        params[key] = f"{before}; {text}"


def pasted_enabled(params: Mapping[str, object]) -> bool:
    """An infotext without us switches us off."""
    return ADAPTER in params


def pasted_adapter(params: Mapping[str, object]) -> str | None:
    """The dropdown's entry, None to leave it."""
    return str(params[ADAPTER]) if ADAPTER in params else None


def pasted_scale(params: Mapping[str, object]) -> float | None:
    """The slider's value, None to leave it."""
    try:
        return float(str(params[SCALE]))
    except (KeyError, ValueError):
        return None


def pasted_trigger(params: Mapping[str, object]) -> bool | None:
    """The tick of the trigger words, None to leave it."""
    return params.get(TRIGGER) == "True" if ADAPTER in params else None


FIELDS = (pasted_enabled, pasted_adapter, pasted_scale, pasted_trigger)
"""In the order of the script's arguments. The web UI calls them with a parsed infotext, and compares them to send the
controls' values to another tab."""


def pasted(params: Params, find: Callable[[str], str | None], by_hash: Mapping[str, str]) -> str | None:
    """Make a pasted infotext ours: the controls get the adapter, so its tag leaves the prompts.

    Args:
        params: the parsed infotext, changed in place.
        find: the file that an adapter's or a tag's name stands for, None if there is none.
        by_hash: short hash -> file, for a file that has been renamed since.

    Returns:
        The name of an adapter that is not here; then the infotext is left as a hand-written tag. None if all is well.
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
"""The web UI leaves these out of the names in "Lora hashes"."""


def _hashes(params: Mapping[str, object]) -> dict[str, str]:
    pairs = (part.rpartition(":") for part in str(params.get("Lora hashes", "")).split(","))
    return {name.strip(): digest.strip() for name, _, digest in pairs if name}
