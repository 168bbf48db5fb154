"""Parses `--data`, given once or several times: a folder with optional settings, "dir, repeats=10, trigger=sks dog"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from convert.errors import UsageError
from trainer.recipe import Recipe, home

_SETTING = re.compile(r",\s*(repeats|trigger|reg|masks)\s*=\s*(.*?)(?=,\s*(?:repeats|trigger|reg|masks)\s*=|$)")
_YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Source:
    """A folder of the user's pictures. None: taken from the subfolders' names."""

    given: str
    """as the user typed it, without the settings"""
    folder: Path
    trigger: str
    repeats: int | None = None
    reg: bool | None = None
    masks: Path | None = None
    """a folder of masks with the pictures' names"""


def sources(recipe: Recipe) -> list[Source]:
    """The folders of `--data`. Raises UsageError for an invalid setting."""
    return [parse_source(text, recipe) for text in (recipe.data, *recipe.more_data)]


def parse_source(text: str, recipe: Recipe) -> Source:
    """Parse one `--data`. An existing folder whose name looks like settings is taken as a folder."""
    if home(text).exists():
        return Source(text, home(text), recipe.trigger)
    start = _SETTING.search(text)
    name, rest = (text[: start.start()].strip(), text[start.start() :]) if start else (text, "")
    given = {key: value.strip() for key, value in _SETTING.findall(rest)}
    repeats = given.get("repeats")
    if repeats is not None and not (repeats.isdecimal() and 1 <= int(repeats) <= MOST_REPEATS):
        raise UsageError(f"--data {text!r}: repeats={repeats}: expected a number from 1 to {MOST_REPEATS}")
    if given.get("reg", "yes").lower() not in _YES:
        raise UsageError(f"--data {text!r}: reg={given['reg']}: expected yes or no")
    masks = home(given["masks"]) if "masks" in given else None
    if masks and not masks.is_dir():
        raise UsageError(f"--data {text!r}: masks={given['masks']}: there is no such folder")
    return Source(name, home(name), given.get("trigger", recipe.trigger), int(repeats) if repeats else None,
                  _YES[given["reg"].lower()] if "reg" in given else None, masks)
