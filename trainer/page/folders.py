"""The folders that the user named. Every path that comes from the browser must lie in one of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from convert.errors import UsageError
from convert.files import write_json
from convert.files.json_file import read_object
from trainer.recipe import home

NAMED = "folders.json"
MOST_LISTED, DEPTH = 200, 2


class Folders:
    """Named folders, stored in `<keep>/folders.json` for the next start.

    more: whether the page may add folders: only if it cannot be reached from other machines, whose users could otherwise add
    the whole disk.
    """

    def __init__(self, keep: Path, named: Sequence[Path], *, more: bool) -> None:
        self._file, self._more = keep / NAMED, more
        self.named = [Path(os.path.realpath(folder)) for folder in named]
        if more:
            self.named += [folder for folder in self._kept() if folder not in self.named]

    def name(self, text: str) -> Path:
        """Add the folder `text` to the named ones. UsageError if it does not exist, or may not be named."""
        path = _resolved(text)
        if not path.is_dir():
            raise UsageError(f"{text}: there is no such folder")
        if self._holds(path):
            return path
        if not self._more:
            raise UsageError(f"{text}: is outside the folders that this page may use: start it with --folder {text}")
        if path.parent == path:
            raise UsageError(f"{text}: is a whole disk: name the folder of the pictures, or of the web UI")
        self.named.append(path)
        write_json(self._file, {"folders": [str(folder) for folder in self.named]})
        return path

    def inside(self, text: str | Path) -> Path:
        """The path `text` with links resolved. UsageError if it is outside the folders."""
        path = _resolved(str(text))
        if not self._holds(path):
            raise UsageError(f"{text}: is outside the folders that you named: name its folder first")
        return path

    def choices(self) -> list[str]:
        """The folders and their subfolders, two levels deep, without hidden ones, at most 200."""
        found: list[str] = []
        for folder in self.named:
            _list(folder, DEPTH, found)
        return found[:MOST_LISTED]

    def _holds(self, path: Path) -> bool:
        return any(path == folder or folder in path.parents for folder in self.named)

    def _kept(self) -> list[Path]:
        try:
            kept = read_object(self._file).get("folders")
        except FileNotFoundError:
            return []
        paths = [Path(text) for text in kept if isinstance(text, str)] if isinstance(kept, list) else []
        return [path for path in paths if path.is_dir() and path == Path(os.path.realpath(path))]


def _resolved(text: str) -> Path:
    """An absolute path with links resolved. UsageError if `text` is not a path."""
    text = text.strip().strip('"')  # Windows' "Copy as path" adds quotes
    if not text:
        raise UsageError("a folder or file is expected, but the field is empty")
    if "\0" in text:
        raise UsageError(f"{text!r}: file names cannot contain NUL")
    try:
        return Path(os.path.realpath(home(text)))
    except (OSError, ValueError) as error:
        raise UsageError(f"{text}: cannot be looked up ({error})") from error


def _list(folder: Path, depth: int, found: list[str]) -> None:
    found.append(str(folder))
    if not depth or len(found) >= MOST_LISTED:
        return
    try:
        inner = sorted(Path(entry.path) for entry in os.scandir(folder)
                       if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False))
    except OSError:  # an unreadable folder is left out
        return
    for place in inner:
        if len(found) < MOST_LISTED:
            _list(place, depth - 1, found)
