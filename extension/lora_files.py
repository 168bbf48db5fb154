"""The LoRA files that the web UI lists: the dropdown's entries, and lookup by name."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import inspection, prompts
from .arguments import NO_ADAPTER
from .inspection import Inspected, Use
from .web_uis import WebUI

ENDINGS = (".safetensors", ".pt", ".ckpt")
"""Extensions of the files that the web UI lists."""

MARKS = {Use.CONVERT: "convert first: {0.form}", Use.OTHER_BASE: "for {0.base_words}", Use.BROKEN: "damaged"}
"""Mark after the name of a file that cannot be used as it is."""

SIGN = "  ⚠ "
"""Between a name and its mark."""

_NO_LIMIT = float("inf")


@dataclass(frozen=True)
class LoraFiles:
    """A snapshot of the web UI's list."""

    paths: Mapping[str, Path]
    """file name without extension -> file"""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """name in a tag (file name or alias) -> file name"""
    by_hash: Mapping[str, str] = field(default_factory=dict)
    """short hash -> file name"""
    web_ui: WebUI = WebUI.A1111
    folders: tuple[Path, ...] = ()

    def resolve(self, tagged: str) -> str | None:
        """The file name for a name in a tag."""
        return tagged if tagged in self.paths else self.aliases.get(tagged)

    def name_of(self, entry: str) -> str | None:
        """The file name for an entry of the dropdown or an API call's adapter; None if there is no such file."""
        plain = entry if entry in self.paths else entry.partition(SIGN)[0]
        if plain in self.paths and plain != NO_ADAPTER:
            return plain
        stem, ending = os.path.splitext(plain)
        return stem if ending.lower() in ENDINGS and stem in self.paths else None

    @staticmethod
    def spelled(name: str) -> str:
        """A file name as written in the dropdown and the infotext; `name_of` is the inverse."""
        return f"{name}.safetensors" if name == NO_ADAPTER else name

    def entry(self, name: str, *, look: bool = True) -> str:
        """A file's entry in the dropdown: its name and its mark. Without `look`, only files already inspected are marked."""
        path = self.paths[name]
        found = inspection.inspect(path, self.web_ui) if look else inspection.known(path, self.web_ui)
        text = mark(found) if found is not None else ""
        return f"{self.spelled(name)}{SIGN}{text}" if text else self.spelled(name)

    def choices(self, seconds: float = _NO_LIMIT) -> list[str]:
        """The dropdown's entries: plain strings, because Gradio 3 does not accept pairs of label and value.

        Args:
            seconds: time limit for inspecting new files; the rest stay unmarked.
        """
        end = time.monotonic() + seconds
        names = sorted(self.paths, key=str.casefold)
        return [NO_ADAPTER, *(self.entry(name, look=time.monotonic() < end) for name in names)]

    def find(self, name: str | None) -> Inspected | None:
        """The file of that name, inspected."""
        path = self.paths.get(name) if name is not None else None
        return inspection.inspect(path, self.web_ui) if path is not None else None

    def chosen(self, entry: str | None) -> Inspected | None:
        """The file behind an entry of the dropdown."""
        return self.find(self.name_of(entry)) if entry and entry != NO_ADAPTER else None

    def why_missing(self, name: str) -> str:
        """Why no file has that name, worded to follow it: suggests similar names, or explains that Forge renamed the file."""
        renamed = next((path for path in _walk(self.folders) if path.stem in (name, *_with_endings(name))
                        and path.suffix == inspection.RENAMED), None)  # fmt: skip
        if renamed is not None:
            return f"is not in the LoRA folder: {inspection.renamed(renamed)}"
        near = self.near(name)
        hint = f"did you mean {' or '.join(near)}?" if near else "look for it in the list, or press its refresh button"
        return f"is not in the LoRA folder; {hint}"

    def near(self, name: str) -> list[str]:
        """At most three similar file names."""
        by_lower = {other.lower(): other for other in self.paths}
        found = [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
        stem = Path(name).stem
        return sorted({*found, stem} if stem in self.paths else found)


def mark(found: Inspected) -> str:
    """The mark after a file's name in the dropdown; "" for a file that works."""
    if prompts.why_no_tag(found.name):
        return "rename first"
    return MARKS.get(found.use, "").format(found)


def below(folders: Iterable[Path]) -> dict[str, Path]:
    """Every LoRA file in the folders, by its relative path."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _walk([folder]):
            if path.suffix.lower() in ENDINGS:
                found.setdefault(path.relative_to(folder).as_posix(), path)
    return dict(sorted(found.items(), key=lambda item: item[0].casefold()))


def _walk(folders: Iterable[Path]) -> Iterator[Path]:
    """Every file that is not hidden. Folders reached again through a link are skipped."""
    seen: set[str] = set()
    for folder in folders:
        for place, subfolders, names in os.walk(folder, followlinks=True):
            real = os.path.realpath(place)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _with_endings(name: str) -> tuple[str, ...]:
    return tuple(f"{name}{ending}" for ending in ENDINGS)
