"""Whether a file has changed since it was read."""

from __future__ import annotations

from pathlib import Path

Stamp = tuple[int, ...]


def stamp(*paths: Path) -> Stamp:
    """Modification time (ns) and size of each file, or -1 for one that is not there."""
    numbers: list[int] = []
    for path in paths:
        try:
            status = path.stat()
            numbers += status.st_mtime_ns, status.st_size
        except FileNotFoundError:
            numbers += -1, -1
    return tuple(numbers)
