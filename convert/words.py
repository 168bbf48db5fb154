"""Notes, counts and tables for a terminal or a host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Note(NamedTuple):
    """A notice to the user. `str()` is one line for a command line; a host shows only `text`."""

    text: str
    advice: str = ""
    """the remedy at a command line"""

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text


def counted(count: int, noun: str) -> str:
    """The words "1 module" or "2 modules"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns, a line each."""
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def missing(name: object) -> str:
    """What a file or folder that does not exist is, worded to follow its name: missing, or a web address."""
    if str(name).startswith(("http:", "https:")):
        return "is a web address: download the file, and give its path"
    return "no such file or folder"
