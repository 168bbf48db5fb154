"""Lists the regular files of a folder and counts everything else by kind, so that nothing is ignored silently."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from convert.errors import JobError
from trainer.data.ours import METRICS, RECIPE

JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
JUNK_FOLDERS = {"@eadir", "__macosx", "$recycle.bin", "#recycle", "@recycle", "@recently-snapshot", "system volume information",
                "lost+found", "__pycache__"}  # fmt: skip
MOST_FILES = 2_000_000
MOST_BYTES = 2**30
"""Size limit for files that are read into memory."""


@dataclass
class Unused:
    """Files that are not used: for each kind their number and the first one."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, count: int = 1) -> None:
        before, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = (before + count, first)


@dataclass(frozen=True)
class Listing:
    """The regular files under a folder, in the order of their paths."""

    root: Path
    files: list[Path]
    unused: Unused

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def list_folder(root: Path, *, follow_links: bool) -> Listing:
    """Walk `root`: regular files only; no hidden files, system folders, run folders or links that leave it.

    follow_links: links that leave `root` are followed too.

    Raises:
        JobError: `root` cannot be read, or contains more than two million files.
    """
    unused = Unused()
    if not os.access(root, os.R_OK | os.X_OK):
        raise JobError(f"{root}: cannot be read: change its permissions")
    walk = _Walk(root, follow_links, unused)
    files = sorted(walk.files(root), key=lambda file: file.parts)
    return Listing(root, files, unused)


class _Walk:
    def __init__(self, root: Path, follow_links: bool, unused: Unused) -> None:
        self.root, self.follow, self.unused = root, follow_links, unused
        self.inside = os.path.realpath(root)
        self.seen: set[str] = set()
        self.count = 0

    def files(self, folder: Path) -> Iterator[Path]:
        real = os.path.realpath(folder)
        if real in self.seen:
            return
        self.seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            self.unused.add("folders that cannot be read", self._name(folder))
            return
        names = {entry.name for entry in entries}
        if folder != self.root and {RECIPE, METRICS} <= names:
            self.unused.add("run folders of this program", self._name(folder))
            return
        for entry in entries:
            yield from self._entry(Path(entry.path), entry)

    def _entry(self, path: Path, entry: os.DirEntry[str]) -> Iterator[Path]:
        name = entry.name.lower()
        if entry.name.startswith(".") or name in JUNK or name in JUNK_FOLDERS:
            self.unused.add("hidden or system files", self._name(path))
            return
        if entry.is_symlink() and not self._allowed(path):
            return
        try:
            mode = entry.stat().st_mode
        except OSError:
            self.unused.add("files that cannot be read", self._name(path))
            return
        if stat.S_ISDIR(mode):
            if entry.name == "checkpoints":
                self.unused.add("folders called checkpoints", self._name(path))
            else:
                yield from self.files(path)
        elif not stat.S_ISREG(mode):
            self.unused.add("pipes, sockets and devices", self._name(path))
        else:
            self.count += 1
            if self.count > MOST_FILES:
                raise JobError(f"{self.root}: contains more than {MOST_FILES:,} files: give only the folder of the pictures")
            yield path

    def _allowed(self, link: Path) -> bool:
        real = os.path.realpath(link)
        if not os.path.exists(real):
            self.unused.add("broken links", self._name(link))
            return False
        if not self.follow and os.path.commonpath([real, self.inside]) != self.inside:
            self.unused.add("links that leave the folder (--follow-links follows them)", self._name(link))
            return False
        return True

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def read_regular(path: Path, limit: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises OSError for anything else, without reading it."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path.name} is not a regular file")
        if found.st_size > limit:
            raise OSError(f"{found.st_size:,} bytes, the limit is {limit:,}")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"more than {limit:,} bytes")
    return data


def plain(name: str) -> str:
    """A path normalised for comparison: case, Unicode composition, and direction of slashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
