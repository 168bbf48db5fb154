"""Reads PyTorch's files (.bin, .pt, .ckpt) without running any code in them.

`torch.save` writes a pickle that names classes and functions to call. Only those that make tensors and dicts are accepted,
and they are replaced by functions of our own; any other name raises. Tensors are not loaded: their bytes are contiguous in
the file, as in a safetensors file, and are copied from there. Format: torch/serialization.py, both the zip archive of torch
1.6 and later and the older sequence of pickles.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from . import dtypes
from .errors import Damaged, FileError, NotALora, quote
from .tensors import Container, Tensor, open_source, stamp_of

LARGEST = 64 << 20
"""Largest pickle in bytes; a LoRA's has about 50 KB."""

DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
"""torch's storage classes -> the safetensors dtype."""

MAGIC = 0x1950A86A20F9469CFC6C
"""The first object of the older format."""


class _Storage(NamedTuple):
    """A contiguous run of `length` numbers in the file."""

    dtype: str
    key: str
    length: int


class _View(NamedTuple):
    """A tensor: the numbers of a storage from `offset` on."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def open_pickle(path: Path) -> Container:
    """The tensors of a PyTorch file with a dict of them, or with one under "state_dict". Its metadata is empty.

    Raises `Damaged` if it is incomplete, `NotALora` if it contains anything but tensors, numbers and strings.
    """
    try:
        with open_source(path) as file:
            stamp = stamp_of(file)
            if file.read(4) == b"PK\x03\x04":
                found, places = _read_zip(path, file)
            else:
                file.seek(0)
                found, places = _read_sequence(file)
        tensors = {name: _tensor(path, name, view, places, stamp) for name, view in _views(path, found).items()}
    except FileError:
        raise
    except _NotKnown as error:
        kind = f"a pickle that contains more than tensors ({quote(str(error))})"
        raise NotALora(path, kind, "only plain tensors are read") from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise any error, and only the unpickler runs here
        raise Damaged(path, f"is not a complete PyTorch file: {quote(str(error) or type(error).__name__)}") from error
    return Container(path, tensors, {}, stamp[1])


class _NotKnown(Exception):
    """A pickle contains something other than tensors."""


class _Unpickler(pickle._Unpickler):  # the pure Python one does not allocate sizes claimed by the file
    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}
        """every one that was named, by its key"""

    def find_class(self, module: str, name: str) -> Callable[..., object] | str:
        if module in ("torch", "torch.storage") and name in DTYPES:
            return DTYPES[name]
        known = _KNOWN.get((module, name))
        if known is None:
            raise _NotKnown(f"{module}.{name}")
        return known

    def persistent_load(self, saved: object) -> _Storage:
        match saved:
            case ("storage", str(dtype), str(key), str(), int(count), *_) if dtype in dtypes.SIZES and count >= 0:
                return self.storages.setdefault(key, _Storage(dtype, key, count))
        raise _NotKnown("a storage of another kind")


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> _View:
    if not isinstance(storage, _Storage) or not isinstance(offset, int):
        raise ValueError("a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) > 8:
        raise ValueError("a tensor with an invalid shape")
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in (*shape, offset)):
        raise ValueError("a tensor with an invalid shape")
    expected, step = [], 1
    for length in reversed(shape):
        expected.append(step)
        step *= max(length, 1)
    contiguous = all(length == 1 or given == wanted for length, given, wanted in zip(shape, stride, reversed(expected)))
    if math.prod(shape) and not contiguous:
        raise _NotKnown("a tensor that is not stored row by row")
    return _View(storage, offset, shape)


def _rebuild_parameter(view: object, *_: object) -> object:
    return view


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): dict,
}
"""Names allowed in a pickle besides storages -> their replacements."""

Places = dict[str, tuple[int, int]]
"""Storage key -> offset and number of its bytes in the file."""


def _load(file: BinaryIO) -> Any:
    return _Unpickler(file).load()


def _read_zip(path: Path, file: BinaryIO) -> tuple[Any, Places]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        main = next((name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")), None)
        if main is None:
            raise Damaged(path, "is a zip archive, but not a PyTorch file", "unpack it and give the file inside")
        if entries[main].file_size > LARGEST:
            raise Damaged(path, f"has a pickle of {entries[main].file_size:,} bytes; the limit is {LARGEST:,}")
        found = _load(io.BytesIO(archive.read(main)))
    prefix = main.removesuffix("data.pkl") + "data/"
    places = {}
    for name, entry in entries.items():
        if name.startswith(prefix):
            if entry.compress_type != zipfile.ZIP_STORED:
                raise Damaged(path, f"compresses {quote(name)}, which PyTorch never does")
            file.seek(entry.header_offset + 26)  # the local header's own lengths: its extra field aligns the data
            lengths = struct.unpack("<HH", file.read(4))
            places[name.removeprefix(prefix)] = (entry.header_offset + 30 + sum(lengths), entry.file_size)
    return found, places


def _read_sequence(file: BinaryIO) -> tuple[Any, Places]:
    if _load(file) != MAGIC:
        raise ValueError("it does not begin as one")
    _load(file), _load(file)  # protocol version, type sizes
    unpickler = _Unpickler(file)
    found, order, places = unpickler.load(), _load(file), {}
    for key in order:
        count = int.from_bytes(file.read(8), "little")
        length = count * dtypes.SIZES[unpickler.storages[key].dtype]
        places[key] = (file.tell(), length)
        file.seek(length, os.SEEK_CUR)
    return found, places


def _views(path: Path, found: object) -> dict[str, _View]:
    """The tensors of a state dict, at the top or under "state_dict"; numbers and strings are left out."""
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise NotALora(path, "a pickle without a dict of tensors", "a LoRA's file contains tensors by name")
    views = {}
    for name, value in found.items():
        if isinstance(value, _View) and isinstance(name, str) and name.isprintable():
            views[name] = value
        elif not isinstance(value, (int, float, str, type(None))):
            raise NotALora(path, "a pickle that contains more than tensors", "only plain tensors are read")
    return views


def _tensor(path: Path, name: str, view: _View, places: Places, stamp: tuple[int, ...]) -> Tensor:
    start, length = places[view.storage.key]
    width = dtypes.SIZES[view.storage.dtype]
    begin, taken = view.offset * width, math.prod(view.shape) * width
    if begin + taken > length or start + length > stamp[1]:
        raise Damaged(path, f"tensor {quote(name)} is cut off", "copy it again, or download it")
    return Tensor(view.storage.dtype, view.shape, taken, path, start + begin, stamp=stamp)
