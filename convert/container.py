"""Reading the safetensors container: 8 bytes of header length, a JSON header, tensor bytes (format of safetensors 0.4).

Only the header is read, and nothing in it is trusted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import dtypes
from .errors import JobError

CHUNK = 1 << 20
"""Bytes copied at a time; a multiple of every dtype's size."""

HEADER_LIMIT = 32 << 20
"""Bytes; room for any metadata, and little enough to parse (safetensors itself stops at 100 MB)."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes lie: `size` bytes at `offset` of `file`, or in `data` itself."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    file: Path | None = None
    offset: int = 0
    data: bytes = b""

    @classmethod
    def scalar(cls, value: float) -> Tensor:
        """A float32 of shape ()."""
        return cls("F32", (), 4, data=dtypes.encode([value], "F32"))

    def read(self) -> bytes:
        """All bytes of the tensor."""
        if self.file is None:
            return self.data
        with open_source(self.file) as file:
            return b"".join(self.chunks(file))

    def chunks(self, file: BinaryIO | None) -> Iterator[bytes]:
        """The tensor's bytes, at most `CHUNK` at a time, from its already open file."""
        if file is None:
            yield self.data
            return
        file.seek(self.offset)
        left = self.size
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise JobError(f"{self.file}: became shorter while it was read; is another program writing it?")
            left -= len(chunk)
            yield chunk


@dataclass(frozen=True)
class Container:
    """A read header: every tensor by name, in file order, and the metadata."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    size: int
    """bytes of the whole file"""


def quote(name: str) -> str:
    """A name from a file, fit for one line of a terminal: control characters escaped, an absurd length cut."""
    shown = ascii(name)[1:-1] if not name.isprintable() else name
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def open_source(path: Path) -> BinaryIO:
    """Open a file to read bytes; `JobError` where that fails."""
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise JobError(f"{quote(str(path))}: cannot be read: {getattr(error, 'strerror', error)}") from error


def open_container(path: Path) -> Container:
    """Read and verify a header. Raises `JobError` for whatever is no whole, sound safetensors file."""
    with open_source(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(min(size, 1024))
        length = _header_length(path, start, size)
        file.seek(8)
        raw = file.read(length)
    header = _parse(path, raw)
    metadata = _metadata(path, header.pop("__metadata__", {}))
    tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}
    _no_gaps(path, tensors, 8 + length, size)
    return Container(path, tensors, metadata, size)


_PICKLE = (
    "is a PyTorch pickle (.bin, .pt, .ckpt), which can run code when loaded; load it with "
    "torch.load(path, weights_only=True), save it with safetensors.torch.save_file, then convert that"
)

_NOT_SAFETENSORS = (
    (b"PK\x03\x04", _PICKLE),
    (b"\x80", _PICKLE),
    (b"<", "is a web page, not a model: the download went wrong; download the file itself"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the model: fetch the file itself with `git lfs pull`"),
)


def _header_length(path: Path, start: bytes, size: int) -> int:
    if not size:
        raise JobError(f"{path}: is empty; a safetensors file was expected")
    length = int.from_bytes(start[:8], "little")
    if size >= 8 + length and start[8:9] == b"{" and length <= HEADER_LIMIT:
        return length
    for magic, meaning in _NOT_SAFETENSORS:
        if start.lstrip().startswith(magic):
            raise JobError(f"{path}: {meaning}")
    if size < 8:
        raise JobError(f"{path}: is {size} bytes long, too short for a safetensors file; it is cut off")
    if start[8:9] == b"{" and length > HEADER_LIMIT:
        raise JobError(f"{path}: claims a header of {length} bytes; at most {HEADER_LIMIT} are read")
    if start[8:9] == b"{":
        raise JobError(f"{path}: is cut off: its header needs {length} bytes and {size - 8} are there; copy it again")
    raise JobError(f"{path}: is no safetensors file (its header does not begin with '{{')")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(items)
        if len(unique) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise JobError(f"{path}: its header names {quote(twice)} twice")
        return unique

    def integer(digits: str) -> int:
        if len(digits) > 19:  # beyond any file size, and slow to parse by the million digits
            raise ValueError("an absurdly large number")
        return int(digits)

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path}: its safetensors header is broken: {quote(str(error))}") from error
    if not isinstance(header, dict):
        raise JobError(f"{path}: its safetensors header is no JSON object")
    _demand_unicode(path, header)
    return header


def _demand_unicode(path: Path, strings: Iterable[str]) -> None:
    try:
        "".join(strings).encode("utf-8")
    except UnicodeEncodeError as error:
        raise JobError(f"{path}: its header holds half a surrogate pair, which is no text") from error


def _metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise JobError(f"{path}: its __metadata__ must map strings to strings")
    _demand_unicode(path, (*metadata.keys(), *metadata.values()))
    return metadata


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # True is an int too, and no count


def _tensor(path: Path, name: str, entry: Any, data_at: int, file_size: int) -> Tensor:
    wrong = f"{path}: tensor {quote(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise JobError(f"{wrong} needs dtype, shape and data_offsets in the header, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes.SIZES:
        raise JobError(f"{wrong} has the unknown dtype {quote(str(dtype))}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_count, shape)):
        raise JobError(f"{wrong} has a shape that is no list of up to eight whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise JobError(f"{wrong} has data_offsets that are not two whole numbers")
    start, end = offsets
    if end > file_size - data_at:
        raise JobError(
            f"{wrong} ends {end - file_size + data_at} bytes after the file does; it is cut off: copy it again"
        )
    if end - start != math.prod(shape) * dtypes.SIZES[dtype]:
        raise JobError(f"{wrong}: {dtype} {shape} does not take the {end - start} bytes that its header gives it")
    return Tensor(dtype, tuple(shape), end - start, path, data_at + start)


def _no_gaps(path: Path, tensors: Mapping[str, Tensor], data_at: int, size: int) -> None:
    """Every byte belongs to exactly one tensor, as safetensors demands (a file that is two files at once is a trap)."""
    position = data_at
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != position:
            what = (
                "overlaps another tensor" if tensor.offset < position else "leaves bytes before it that nothing names"
            )
            raise JobError(f"{path}: tensor {quote(name)} {what}")
        position += tensor.size
    if position != size:
        raise JobError(f"{path}: has {size - position} bytes after its last tensor that nothing names")
