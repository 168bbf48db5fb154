"""The number formats of safetensors, decoded and encoded with only the standard library.

Sizes are bytes per number. Numbers are decoded only to read an alpha, to cast with `--dtype`, to fold a scale into a factor
and to scan for NaN. Everything else copies bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache

SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

Data = bytes | bytearray
"""Packed numbers; reused buffers are bytearrays."""

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""dtypes allowed for factors. Excludes integers, complex numbers, and F8_E8M0, which only stores powers of two."""

CASTS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Value of `--dtype` -> the safetensors name."""

_STRUCT = {
    "BOOL": "?", "U8": "B", "I8": "b", "I16": "h", "U16": "H", "F16": "e",
    "I32": "i", "U32": "I", "F32": "f", "I64": "q", "U64": "Q", "F64": "d",
}  # fmt: skip


class Unrepresentable(Exception):
    """A number does not fit the requested dtype, or the dtype cannot be decoded here."""


def decode(data: Data, dtype: str) -> Sequence[float]:
    """Little-endian bytes -> numbers. Raises `Unrepresentable` for complex numbers."""
    if dtype == "BF16":
        return struct.unpack(f"<{len(data) // 2}f", _widen_bf16(data))
    if dtype.startswith("F8_"):
        table = _float8_table(dtype)
        return [table[byte] for byte in data]
    if dtype not in _STRUCT:
        raise Unrepresentable(f"{dtype} cannot be decoded")
    return struct.unpack(f"<{len(data) // SIZES[dtype]}{_STRUCT[dtype]}", data)


def encode(values: Sequence[float], dtype: str) -> bytes:
    """Numbers -> little-endian bytes in F64, F32, F16 or BF16, rounded to nearest, ties to even.

    Raises `Unrepresentable` for another dtype, and if a finite number would overflow to infinity.
    """
    if dtype not in ("F64", *CASTS.values()):
        raise Unrepresentable(f"numbers cannot be encoded as {dtype}; --dtype takes {', '.join(CASTS)}")
    try:
        if dtype == "BF16":
            return _narrow_bf16(values)
        return struct.pack(f"<{len(values)}{_STRUCT[dtype]}", *values)
    except OverflowError:
        largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
        raise Unrepresentable(f"a value as large as {largest:g} does not fit {dtype}") from None


def recode(data: Data, source: str, target: str, scale: float = 1.0) -> Data:
    """`data` cast from one dtype to another, each number multiplied by `scale` in double precision."""
    if scale == 1.0:
        if source == target:
            return data
        if (source, target) == ("BF16", "F32"):
            return _widen_bf16(data)
        return encode(decode(data, source), target)
    return encode([value * scale for value in decode(data, source)], target)


def all_finite(data: Data, dtype: str) -> bool:
    """Whether no number is NaN or infinite. Always true for a dtype without either."""
    if not dtype.startswith(("F", "BF")):
        return True
    suspects = _LAST_BYTES.get(dtype)
    if suspects is not None:
        last = data[SIZES[dtype] - 1 :: SIZES[dtype]]  # sign and exponent: this scans millions of numbers in milliseconds
        if not any(byte in last for byte in suspects):
            return True
    return all(map(math.isfinite, decode(data, dtype)))


_LAST_BYTES = {
    "F64": (0x7F, 0xFF), "F32": (0x7F, 0xFF), "BF16": (0x7F, 0xFF),
    "F16": (0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF),
}  # fmt: skip
"""Last bytes that every NaN and infinity has; besides them only the largest numbers do."""


def _widen_bf16(data: Data) -> bytes:
    wide = bytearray(2 * len(data))  # bfloat16 is the upper half of float32
    wide[2::4] = data[0::2]
    wide[3::4] = data[1::2]
    return bytes(wide)


def _narrow_bf16(values: Sequence[float]) -> bytes:
    wide = struct.pack(f"<{len(values)}f", *values)
    bits = struct.unpack(f"<{len(values)}I", wide)
    narrow = [(b + 0x7FFF + (b >> 16 & 1)) >> 16 if b & 0x7F800000 != 0x7F800000 else _special(b) for b in bits]
    if any(n & 0x7F80 == 0x7F80 and math.isfinite(v) for n, v in zip(narrow, values)):
        raise OverflowError
    return struct.pack(f"<{len(values)}H", *narrow)


def _special(bits: int) -> int:
    """Keep infinities, and keep a mantissa bit of a NaN so that it stays a NaN."""
    return bits >> 16 | (0x40 if bits & 0x7FFFFF else 0)


@lru_cache
def _float8_table(dtype: str) -> tuple[float, ...]:
    """All 256 values of an 8-bit format (OCP 8-bit floating point specification, section 5)."""
    if dtype == "F8_E8M0":
        return tuple(2.0 ** (byte - 127) if byte != 255 else math.nan for byte in range(256))
    mantissa_bits = 3 if dtype == "F8_E4M3" else 2
    bias = 7 if dtype == "F8_E4M3" else 15
    return tuple(_float8(byte, mantissa_bits, bias) for byte in range(256))


def _float8(byte: int, mantissa_bits: int, bias: int) -> float:
    exponent, mantissa = byte >> mantissa_bits & (1 << 7 - mantissa_bits) - 1, byte & (1 << mantissa_bits) - 1
    sign = -1.0 if byte & 0x80 else 1.0
    if mantissa_bits == 3 and byte & 0x7F == 0x7F:
        return math.nan  # E4M3 ("FN") has one NaN per sign and no infinity
    if mantissa_bits == 2 and exponent == 31:
        return math.nan if mantissa else sign * math.inf
    fraction = mantissa / (1 << mantissa_bits)
    return sign * (2.0 ** (exponent - bias) * (1 + fraction) if exponent else 2.0 ** (1 - bias) * fraction)
