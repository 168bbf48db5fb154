"""Positions of the tensors in a file; their bytes are read only when needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from . import dtypes
from .errors import Damaged, FileError, quote
from .words import missing

CHUNK = 1 << 17
"""Bytes copied at a time; a multiple of every dtype's size."""


class Tensor(NamedTuple):
    """A tensor's bytes: `size` bytes at `offset` of `file`, or `data` itself."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    file: Path | None = None
    offset: int = 0
    data: bytes = b""
    stamp: tuple[int, ...] = ()
    """the file's stamp when its header was read (see `stamp_of`)"""

    @classmethod
    def scalar(cls, value: float) -> Tensor:
        """A float32 of shape ()."""
        return cls("F32", (), 4, data=dtypes.encode([value], "F32"))

    def read(self) -> bytes:
        """All bytes of the tensor."""
        if self.file is None:
            return self.data
        with open_source(self.file) as file:
            self.demand_unchanged(file)
            return b"".join(map(bytes, self.chunks(file)))

    def demand_unchanged(self, file: BinaryIO) -> None:
        """Raise `Damaged` if the file has changed since its header was read, because the offsets would be wrong."""
        if self.file is not None and stamp_of(file) != self.stamp:
            raise Damaged(self.file, "was replaced while it was being read", "run this again")

    def chunks(self, file: BufferedReader | None) -> Iterator[dtypes.Data]:
        """Yield the tensor's bytes, at most `CHUNK` at a time, from its open file. Each chunk overwrites the previous one."""
        if file is None:
            yield self.data
            return
        file.seek(self.offset)
        left, buffer = self.size, bytearray(min(CHUNK, self.size))
        while left:
            del buffer[left:]
            if file.readinto(buffer) < len(buffer):
                raise Damaged(self.file or "", "became shorter while it was being read", "is another program writing it?")
            left -= len(buffer)
            yield buffer


@dataclass(frozen=True)
class Container:
    """A read header: every tensor by name, in file order, and the metadata."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    size: int
    """bytes of the whole file"""


def stamp_of(file: BinaryIO) -> tuple[int, ...]:
    """A value that changes if an open file is written to, and differs for a file that replaces it."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def open_source(path: Path) -> BufferedReader:
    """Open a file to read bytes. Raises `JobError` if that fails."""
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise FileError(quote(str(path)), missing(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError(quote(str(path)), f"cannot be read: {getattr(error, 'strerror', error)}") from error
