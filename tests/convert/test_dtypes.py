"""Number formats against torch's, on every bit pattern where there are few."""

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convert import dtypes

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _bytes(tensor):
    return bytes(tensor.view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_every_float8(name):
    theirs = torch.arange(256, dtype=torch.uint8).view(
        {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[name]
    )
    ours = torch.tensor(dtypes.decode(bytes(range(256)), name))
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("source", ["F16", "BF16"])
@pytest.mark.parametrize("target", ["F32", "F16", "BF16"])
def test_every_16_bit_number_cast(source, target):
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(TORCH[source])
    finite = patterns[patterns.isfinite() & patterns.to(TORCH[target]).isfinite()]
    assert dtypes.recode(_bytes(finite), source, target) == _bytes(finite.to(TORCH[target]))


@given(st.lists(st.floats(width=32), min_size=1))
def test_float32_to_both_halves(values):
    data = struct.pack(f"<{len(values)}f", *values)
    for target in ("F16", "BF16"):
        theirs = torch.tensor(values, dtype=torch.float32).to(TORCH[target])
        overflow = any(math.isfinite(v) and not math.isfinite(t) for v, t in zip(values, theirs.tolist()))
        try:
            ours = torch.frombuffer(bytearray(dtypes.recode(data, "F32", target)), dtype=TORCH[target])
        except dtypes.Unrepresentable:
            assert overflow
        else:
            assert not overflow
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.floats(width=32)), st.sampled_from(["F32", "BF16", "F16"]))
def test_all_finite(values, dtype):
    data = _bytes(torch.tensor(values, dtype=torch.float32).to(TORCH[dtype]))
    assert dtypes.all_finite(data, dtype) == bool(torch.tensor(values).to(TORCH[dtype]).isfinite().all())


def test_sizes_are_those_of_safetensors():
    from safetensors.torch import _SIZE, _TYPES

    for name, dtype in _TYPES.items():
        if name in dtypes.SIZES:
            assert dtypes.SIZES[name] == _SIZE[dtype]
    assert {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"} <= set(
        dtypes.SIZES
    )
