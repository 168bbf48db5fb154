"""Matrices as small whole numbers with a scale for each output row: how the networks and the judge are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from convert.stream import Output
from convert.tensors import Tensor as Bytes

_KINDS = {torch.int8: "I8", torch.float16: "F16", torch.float32: "F32", torch.int32: "I32"}


def to_whole(matrix: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """int8 (out, ...) from -`largest` to `largest`, and the scales, float32 (out,)."""
    value = matrix.detach().float()
    scale = (value.flatten(1).abs().amax(1) / largest).clamp(min=1e-12)
    return (value / _rows(scale, value)).round().to(torch.int8), scale


def from_whole(whole: Tensor, scale: Tensor) -> Tensor:
    """The matrix, float32. Elementwise, so it is the same on every machine."""
    return whole.float() * _rows(scale, whole)


def _rows(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (like.ndim - 1))


def output(name: str, tensor: Tensor) -> Output:
    """The tensor as an entry of a safetensors file."""
    kind, shape = _KINDS[tensor.dtype], tuple(tensor.shape)
    return Output(name, Bytes(kind, shape, tensor.nbytes, data=tensor.contiguous().numpy().tobytes()), shape, kind)
