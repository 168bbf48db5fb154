"""Reads the safetensors container: 8 bytes of header length, a JSON header, tensor bytes (format of safetensors 0.4).

Reads only the header, and validates all of it.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import dtypes
from .errors import Damaged, NotSafetensors, quote
from .files.json_file import parse
from .tensors import Container, Tensor, open_source, stamp_of

FIELDS = {"dtype", "shape", "data_offsets"}
"""Keys of every tensor's entry in a header."""

HEADER_LIMIT = 32 << 20
"""Largest header in bytes: ample for any metadata, and still fast to parse (safetensors' own limit is 100 MB)."""


def open_container(path: Path, *, pickles: bool = False) -> Container:
    """Read and verify a header. Raises `NotSafetensors` or `Damaged` unless it is a complete, sound safetensors file.

    With `pickles`, PyTorch's .bin, .pt and .ckpt are opened too, without running any code in them (see `pickled`).
    """
    with open_source(path) as file:
        stamp = stamp_of(file)
        size = stamp[1]
        start = file.read(min(size, 1024))
        try:
            length = _header_length(path, start, size)
        except NotSafetensors as error:
            if not (pickles and error.is_pickle):
                raise
            from .pickled import open_pickle

            return open_pickle(path)
        file.seek(8)
        raw = file.read(length)
    with no_garbage_collection():
        header = _parse(path, raw)
        metadata = _metadata(path, header.pop("__metadata__", {}))
        tensors = {name: _tensor(path, name, entry, 8 + length, stamp) for name, entry in header.items()}
        _no_gaps(path, tensors, 8 + length, size)
    return Container(path, tensors, metadata, size)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection: parsing a long header makes a million objects, and collecting takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_PICKLE = (
    "is a PyTorch pickle (.bin, .pt, .ckpt), which can run code when loaded",
    "python -m convert reads it without running any code in it and writes a safetensors file",
)

_NOT_SAFETENSORS: tuple[tuple[bytes, tuple[str, str]], ...] = (
    (b"PK\x03\x04", _PICKLE),
    (b"\x80", _PICKLE),
    (b"<", ("is a web page, not a model: the download went wrong", "download the file itself")),
    (b"version https://git-lfs", ("is a Git LFS pointer, not the model", "fetch the file itself with `git lfs pull`")),
)


def _header_length(path: Path, start: bytes, size: int) -> int:
    if not size:
        raise NotSafetensors(path, "is empty", "expected a safetensors file")
    length = int.from_bytes(start[:8], "little")
    if size >= 8 + length and start[8:9] == b"{" and length <= HEADER_LIMIT:
        return length
    for magic, (problem, advice) in _NOT_SAFETENSORS:
        if start.lstrip().startswith(magic):
            raise NotSafetensors(path, problem, advice, is_pickle=problem == _PICKLE[0])
    if size < 8:
        raise NotSafetensors(path, f"is {size} bytes long, too short for a safetensors file", "download it again")
    if start[8:9] == b"{" and length > HEADER_LIMIT:
        raise Damaged(path, f"claims a header of {length} bytes; the limit is {HEADER_LIMIT}")
    if start[8:9] == b"{":
        problem = f"is cut off: its header needs {length} bytes, but only {size - 8} follow"
        raise Damaged(path, problem, "copy it again, or download it")
    raise NotSafetensors(path, "is not a safetensors file (its header does not begin with '{')")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """The header as JSON. Duplicate names, which `json` ignores, are refused."""
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(items)
        if len(unique) != len(items):
            twice = next(name for name, count in Counter(name for name, _ in items).items() if count > 1)
            raise Damaged(path, f"its header names {quote(twice)} twice")
        return unique

    try:
        header: Any = parse(raw.decode("utf-8"))
        if not isinstance(header, dict):
            raise Damaged(path, "its safetensors header is not a JSON object")
        if any(raw.count(f'"{field}"'.encode()) != len(header.keys() - {"__metadata__"}) for field in FIELDS):
            header = parse(raw.decode("utf-8"), object_pairs_hook=pairs)  # slower, so only if the count does not match
    except ValueError as error:
        raise Damaged(path, f"its safetensors header is broken: {quote(str(error))}") from error
    _demand_unicode(path, header)
    found: dict[str, Any] = header
    return found


def _demand_unicode(path: Path, strings: Iterable[str]) -> None:
    try:
        "".join(strings).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Damaged(path, "its header contains half a surrogate pair, which is not text") from error


def _metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Damaged(path, "its __metadata__ must map strings to strings")
    _demand_unicode(path, (*metadata.keys(), *metadata.values()))
    return metadata


def _are_counts(values: Any, most: int) -> bool:
    """Whether it is a list of at most `most` whole numbers from 0, booleans excluded."""
    if type(values) is not list or len(values) > most:
        return False
    for value in values:  # noqa: SIM110 (headers of some hundred thousand tensors are read here)
        if type(value) is not int or value < 0:
            return False
    return True


def _tensor(path: Path, name: str, entry: Any, data_at: int, stamp: tuple[int, ...]) -> Tensor:
    if type(entry) is not dict or entry.keys() != FIELDS:
        raise _wrong(path, name, "needs dtype, shape and data_offsets in the header, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in dtypes.SIZES:
        raise _wrong(path, name, f"has the unknown dtype {quote(str(dtype))}")
    if not _are_counts(shape, 8):
        raise _wrong(path, name, "has a shape that is not a list of up to eight whole numbers")
    if not _are_counts(offsets, 2) or len(offsets) != 2:
        raise _wrong(path, name, "has data_offsets that are not two whole numbers")
    start, end = offsets
    file_size = stamp[1]
    if end > file_size - data_at:
        problem = f"ends {end - file_size + data_at} bytes after the file does: it is cut off"
        raise _wrong(path, name, problem, "copy it again, or download it")
    if end - start != math.prod(shape) * dtypes.SIZES[dtype]:
        raise _wrong(path, name, f"as {dtype} {shape} does not take up the {end - start} bytes given in the header")
    return Tensor(dtype, tuple(shape), end - start, path, data_at + start, stamp=stamp)


def _wrong(path: Path, name: str, problem: str, advice: str = "") -> Damaged:
    return Damaged(path, f"tensor {quote(name)} {problem}", advice)


def _no_gaps(path: Path, tensors: Mapping[str, Tensor], data_at: int, size: int) -> None:
    """Check that every byte belongs to exactly one tensor, as safetensors requires."""
    places = [(tensor.offset, tensor.size, name) for name, tensor in tensors.items()]
    position = data_at
    for offset, length, name in sorted(places):
        if offset != position:
            overlaps = offset < position
            raise _wrong(path, name, "overlaps another tensor" if overlaps else "has unused bytes before it")
        position += length
    if position != size:
        raise Damaged(path, f"has {size - position} unused bytes after its last tensor")
