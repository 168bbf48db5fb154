"""Converts between tensors in files and numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy

from .. import dtypes
from ..errors import JobError
from ..tensors import Tensor

Array = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

without_overflow_warnings = numpy.errstate(over="ignore", invalid="ignore")
"""Decorator for sums of user-given multiples: `encode` reports numbers that are too large."""

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}

WEIGHTS = ("F64", "F32", "F16", "BF16")
"""dtypes that a changed weight can be written in."""


def to_array(tensor: Tensor) -> Array:
    """A tensor's numbers as float32."""
    return decode(tensor.read(), tensor.dtype, tensor.shape)


def to_tensor(array: Array, dtype: str, what: str) -> Tensor:
    """float32 -> a tensor in memory, rounded to nearest even. Raises `JobError` for numbers that overflow `dtype`."""
    data = encode(array, dtype, what)
    return Tensor(dtype, tuple(array.shape), len(data), data=data)


def all_finite(array: Array) -> bool:
    """Whether no number is NaN or infinite."""
    return bool(numpy.isfinite(array).all())


def decode(data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """The bytes of a tensor as float32."""
    if dtype in _NUMPY:
        return numpy.frombuffer(data, _NUMPY[dtype]).astype(numpy.float32).reshape(shape)
    if dtype == "BF16":  # the upper half of float32
        return (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(numpy.float32).reshape(shape)
    return numpy.asarray(dtypes.decode(data, dtype), numpy.float32).reshape(shape)


def encode(array: Array, dtype: str, what: str) -> bytes:
    """float32 -> the bytes of a tensor, rounded to nearest even. Overflow raises a `JobError`, which calls it `what`."""
    if dtype == "BF16":
        bits = numpy.ascontiguousarray(array, "<f4").view("<u4")
        stored = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
        finite = (stored & 0x7F80) != 0x7F80
    else:
        with numpy.errstate(over="ignore"):
            stored = array.astype(_NUMPY[dtype])
        finite = numpy.isfinite(stored)
    if not finite.all():
        raise JobError(f"{what}: has numbers that are too large for {dtype}")
    return bytes(stored.tobytes())
