"""The files that the web UI lists, as its dropdown shows them and as a name finds them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import adapters, prompts
from .adapters import Adapter, Use
from .request import NOBODY

MARKS = {Use.CONVERT: "convert first: {0.form}", Use.OTHER_BASE: "for {0.base_words}", Use.BROKEN: "damaged"}
"""What stands behind a name that cannot be used as it is."""

SIGN = "  ⚠ "
"""Between a name and its mark."""

_NO_BUDGET = float("inf")


@dataclass(frozen=True)
class Catalog:
    """A snapshot of the web UI's list of LoRA files."""

    paths: Mapping[str, Path]
    """file name without ending -> file"""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """what a tag may say -> file name"""
    by_hash: Mapping[str, str] = field(default_factory=dict)
    """short hash -> file name"""
    many_forms: bool = False
    """the web UI reads other forms than kohya's too, which ones is not known here"""

    def resolve(self, tagged: str) -> str | None:
        """The file name that a tag's name stands for."""
        return tagged if tagged in self.paths else self.aliases.get(tagged)

    def name_of(self, entry: str) -> str:
        """The file name in an entry of the dropdown; what is no entry is taken for a name."""
        name = entry.partition(SIGN)[0]
        return name if entry not in self.paths and name in self.paths else entry

    def entry(self, name: str, *, look: bool = True) -> str:
        """A file's entry in the dropdown: its name, and behind it what it needs, where that is known or may be looked up."""
        path = self.paths[name]
        adapter = adapters.examine(path) if look else adapters.known(path)
        text = mark(adapter) if adapter is not None else ""
        return f"{name}{SIGN}{text}" if text else name

    def choices(self, seconds: float = _NO_BUDGET) -> list[str]:
        """The dropdown's entries: plain strings, as Gradio 3 takes no pairs of a label and a value.

        Args:
            seconds: how long unknown files may be looked into; those left over stay unmarked.
        """
        end = time.monotonic() + seconds
        names = sorted(self.paths, key=str.casefold)
        return [NOBODY, *(self.entry(name, look=time.monotonic() < end) for name in names)]

    def find(self, name: str) -> Adapter | None:
        """The adapter in the file of that name."""
        path = self.paths.get(name)
        return adapters.examine(path) if path is not None else None

    def why_missing(self, name: str) -> str:
        """One line for a name that is no file's."""
        near = difflib.get_close_matches(name.lower(), [other.lower() for other in self.paths], n=3, cutoff=0.6)
        close = [other for other in self.paths if other.lower() in near or other == Path(name).stem]
        hint = f"did you mean {', '.join(sorted(close))}?" if close else "give the file's name without its ending"
        shown = ascii(name) if len(name) <= 80 else f"{ascii(name[:77])}..."
        return f"adapter {shown} is not in the LoRA folder; {hint}"


def mark(adapter: Adapter) -> str:
    """What stands behind its name in the dropdown; nothing for one that works."""
    if prompts.why_no_tag(adapter.name):
        return "rename first"
    return MARKS.get(adapter.use, "").format(adapter)
