"""Writing the safetensors container, streaming: tensor bytes are copied chunk by chunk and hashed on the way, then the
header, whose length is known beforehand, is written in front of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

from . import dtypes
from .container import Tensor, quote
from .errors import JobError

HEADER_LIMIT = 1 << 20
"""Bytes; ComfyUI reads the metadata of no file with a longer header."""

LEGACY_HASH_AT, LEGACY_HASH_BYTES = 0x100000, 0x10000


@dataclass(frozen=True)
class Output:
    """A tensor to write: `source`'s numbers under another name and shape, cast to `dtype`, multiplied by `scale`.

    With `compute`, its bytes are instead what that makes of all of the source's bytes.
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


def _header(outputs: Sequence[Output], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for output in outputs:
        offsets = [position, position + output.size]
        header[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": offsets}
        position += output.size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return text + b" " * (-len(text) % 8)


HASHES = {"sshs_model_hash": 64, "sshs_legacy_hash": 8, "modelspec.hash_sha256": 66}
"""Metadata computed from the tensor bytes -> its length in characters."""

CHECKPOINT_HASHES = {"modelspec.hash_sha256": 66}
"""The one of them that means something in a whole checkpoint."""


def write_container(
    target: BinaryIO,
    outputs: Sequence[Output],
    metadata: Mapping[str, str],
    *,
    hashes: Mapping[str, int] = HASHES,
) -> dict[str, str]:
    """Stream a safetensors file into `target` and return its metadata, hashes included.

    Tensors lie in safetensors' own order (wide dtypes first, then by name) and metadata keys are sorted, so equal
    tensors and metadata make an equal file. `metadata` must not hold the `hashes`; they are added:
    `sshs_model_hash`, sha256 of all bytes after the header; `sshs_legacy_hash`, the first 8 hex digits of the sha256
    of 64 KiB at 1 MiB of the file as it would be with only the `ss_` metadata (both as kohya's sd-scripts computes
    them); `modelspec.hash_sha256`, the first with "0x" before it.
    """
    outputs = sorted(outputs, key=lambda output: (-dtypes.SIZES[output.dtype], output.name))
    full = {**metadata, **{name: "0" * length for name, length in hashes.items()}}
    header = _header(outputs, full)
    if len(header) > HEADER_LIMIT:
        longest = max(metadata, key=lambda key: len(metadata[key]), default="")
        raise JobError(
            f"the header would be {len(header)} bytes and ComfyUI reads at most {HEADER_LIMIT}: "
            f"remove metadata, the longest is {quote(longest)} (--drop {quote(longest)})"
        )
    training_only = _header(outputs, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    position = 8 + len(training_only)
    model, legacy = hashlib.sha256(), hashlib.sha256()
    target.seek(8 + len(header))
    for chunk in _stream(outputs):
        target.write(chunk)
        model.update(chunk)
        first, last = max(LEGACY_HASH_AT - position, 0), LEGACY_HASH_AT + LEGACY_HASH_BYTES - position
        if last > 0 and first < len(chunk):
            legacy.update(chunk[first:last])
        position += len(chunk)
    digest = model.hexdigest()
    found = {
        "sshs_model_hash": digest,
        "sshs_legacy_hash": legacy.hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{digest}",
    }
    full.update({name: found[name] for name in hashes})
    target.seek(0)
    target.write(len(header).to_bytes(8, "little") + _header(outputs, full))
    return full


def _stream(outputs: Sequence[Output]) -> Iterator[bytes]:
    """The bytes of all tensors, one after another; each source file is opened once."""
    with ExitStack() as stack:
        paths = {output.source.file for output in outputs if output.source.file is not None}
        files = {path: stack.enter_context(open(path, "rb")) for path in paths}
        for output in outputs:
            source = output.source
            if output.compute is not None:
                yield output.compute(source.read())
                continue
            for chunk in source.chunks(files[source.file] if source.file is not None else None):
                try:
                    yield dtypes.recode(chunk, source.dtype, output.dtype, output.scale)
                except dtypes.Unrepresentable as error:
                    raise JobError(f"{source.file}: tensor for {quote(output.name)}: {error}") from error
