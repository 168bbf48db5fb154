"""Writes the safetensors container as a stream: copies tensor bytes in chunks and hashes them on the way, then writes the
header, whose length is known in advance, in front of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from . import dtypes, keys
from .container import HEADER_LIMIT
from .errors import FileError, JobError, quote
from .files import start_writing
from .tensors import Tensor, open_source
from .words import Note, counted

SHOWN_HEADER = 1 << 20
"""Bytes of the longest header whose metadata ComfyUI shows; it also loads files with longer ones."""

LEGACY_HASH_AT, LEGACY_HASH_BYTES = 0x100000, 0x10000


WRITTEN_EARLY = 1 << 24
"""Bytes between two calls that have the system write to disk."""


@dataclass(frozen=True)
class Output:
    """A tensor to write: `source`'s numbers under another name and shape, cast to `dtype`, multiplied by `scale`.

    With `compute`, its bytes are instead the result of that function for all of the source's bytes.
    """

    name: str
    source: Tensor
    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0
    compute: Callable[[bytes], bytes] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape) * dtypes.SIZES[self.dtype]


def _entries(outputs: Sequence[Output]) -> bytes:
    """The header's entries for the tensors, up to the brace that closes the header."""
    entries, position = {}, 0
    for output in outputs:
        end = position + output.size
        entries[output.name] = {"dtype": output.dtype, "shape": output.shape, "data_offsets": (position, end)}
        position = end
    return _json(entries)[1:]


def _header(metadata: Mapping[str, str], entries: bytes) -> bytes:
    text = b'{"__metadata__":' + _json(dict(sorted(metadata.items()))) + (b"," if entries != b"}" else b"") + entries
    return text + b" " * (-len(text) % 8)


def _json(found: Mapping[str, Any]) -> bytes:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


HASHES = {keys.MODEL_HASH: 64, keys.LEGACY_HASH: 8, keys.FILE_HASH: 66}
"""Metadata computed from the tensor bytes -> its length in characters."""

CHECKPOINT_HASHES = {keys.FILE_HASH: 66}
"""The only one of them that applies to a whole checkpoint."""


class _Digest:
    """Computes all hashes of one file from its tensor bytes in order."""

    def __init__(self, training_start: int, wanted: Iterable[str]):
        """`training_start` is the offset of the tensor bytes in a file whose header has only the `ss_` metadata."""
        self._wanted = wanted
        self._position = training_start
        self._all, self._window = hashlib.sha256(), hashlib.sha256()

    def update(self, chunk: dtypes.Data) -> None:
        self._all.update(chunk)
        first, last = LEGACY_HASH_AT - self._position, LEGACY_HASH_AT + LEGACY_HASH_BYTES - self._position
        if last > 0 and first < len(chunk):
            self._window.update(chunk[max(first, 0) : last])
        self._position += len(chunk)

    def found(self) -> dict[str, str]:
        digest = self._all.hexdigest()
        values = {
            keys.MODEL_HASH: digest,
            keys.LEGACY_HASH: self._window.hexdigest()[:8],
            keys.FILE_HASH: f"0x{digest}",
        }
        return {name: values[name] for name in self._wanted}


class Written(NamedTuple):
    """The result of writing a container."""

    metadata: dict[str, str]
    """as written, with the hashes"""
    not_finite: list[str]
    """names of tensors with NaN or infinite numbers"""
    header: int
    """bytes"""

    def notes(self) -> list[Note]:
        """Notices about the file."""
        notes = []
        if self.not_finite:
            have = f"{counted(len(self.not_finite), 'tensor')} {'has' if len(self.not_finite) == 1 else 'have'}"
            text = f"{have} NaN or infinite numbers, so every picture would be black: {quote(self.not_finite[0])}"
            notes.append(Note(text))
        if self.header > SHOWN_HEADER:
            text = f"the header has {self.header:,} bytes; ComfyUI shows metadata only up to {SHOWN_HEADER:,}"
            notes.append(Note(text, _drop(self.metadata)))
        return notes


def _drop(metadata: Mapping[str, str]) -> str:
    longest = quote(max(metadata, key=lambda key: len(metadata[key]), default=""))
    return f"--drop {longest} removes its longest metadata"


def write_container(
    target: BinaryIO,
    outputs: Sequence[Output],
    metadata: Mapping[str, str],
    *,
    hashes: Mapping[str, int] = HASHES,
) -> Written:
    """Stream a safetensors file into `target`.

    Tensors are in safetensors' own order (wide dtypes first, then by name) and metadata keys are sorted, so equal
    tensors and metadata give equal files. `metadata` must not contain the `hashes`; they are added:
    `sshs_model_hash`, sha256 of all bytes after the header; `sshs_legacy_hash`, the first 8 hex digits of the sha256
    of 64 KiB at 1 MiB of the file as it would be with only the `ss_` metadata (both as kohya's sd-scripts computes
    them); `modelspec.hash_sha256`, the first with "0x" before it.
    """
    outputs = sorted(outputs, key=lambda output: (-dtypes.SIZES[output.dtype], output.name))
    full = {**metadata, **{name: "0" * length for name, length in hashes.items()}}
    entries = _entries(outputs)
    header = _header(full, entries)
    if len(header) > HEADER_LIMIT:
        raise JobError(f"the header would be {len(header):,} bytes; the limit is {HEADER_LIMIT:,}; {_drop(metadata)}")
    training_only = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    digest = _Digest(8 + len(_header(training_only, entries)), hashes)
    started = position = target.seek(8 + len(header))
    not_finite: dict[str, None] = {}
    for output, chunk in _stream(outputs):
        digest.update(chunk)
        position += target.write(chunk)
        if position - started >= WRITTEN_EARLY:
            start_writing(target, started, position)
            started = position
        if output.name not in not_finite and not dtypes.all_finite(chunk, output.dtype):
            not_finite[output.name] = None
    full.update(digest.found())
    target.seek(0)
    target.write(len(header).to_bytes(8, "little") + _header(full, entries))
    return Written(full, list(not_finite), len(header))


def _stream(outputs: Sequence[Output]) -> Iterator[tuple[Output, dtypes.Data]]:
    """Yield the bytes of all tensors in chunks; each source file is opened once."""
    with ExitStack() as stack:
        paths = {output.source.file for output in outputs if output.source.file is not None}
        files = {path: stack.enter_context(open_source(path)) for path in paths}
        first = {output.source.file: output.source for output in outputs if output.source.file is not None}
        for path, tensor in first.items():
            tensor.demand_unchanged(files[path])
        for output in outputs:
            source = output.source
            if output.compute is not None:
                yield output, output.compute(source.read())
                continue
            for chunk in source.chunks(files[source.file] if source.file is not None else None):
                try:
                    yield output, dtypes.recode(chunk, source.dtype, output.dtype, output.scale)
                except dtypes.Unrepresentable as error:
                    raise FileError(source.file or "", f"tensor for {quote(output.name)}: {error}") from error
        for path, tensor in first.items():
            tensor.demand_unchanged(files[path])
