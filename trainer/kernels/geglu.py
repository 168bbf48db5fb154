"""GEGLU's gate on a CPU, without the copies that autograd makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.kernels.context import Context
from trainer.kernels.cpu import cpu_kernel

if TYPE_CHECKING:  # slow to load
    from diffusers.models.activations import GEGLU


@cpu_kernel
def gated(layer: GEGLU, x: Tensor) -> Tensor:
    """value * gelu(gate) of one projection (Shazeer 2020, GLU variants)."""
    out: Tensor = _Gated.apply(layer.proj(x))
    return out


class _Gated(torch.autograd.Function):
    """Writes both gradients into one tensor; autograd's own chunk makes two and copies them together."""

    @staticmethod
    def forward(ctx: Context, joined: Tensor) -> Tensor:
        value, gate = joined.chunk(2, dim=-1)
        opened = functional.gelu(gate)
        ctx.save_for_backward(joined, opened)
        return value * opened

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> Tensor:
        joined, opened = ctx.saved_tensors
        value, gate = joined.chunk(2, dim=-1)
        both = torch.empty_like(joined)
        to_value, to_gate = both.chunk(2, dim=-1)
        torch.mul(gradient, opened, out=to_value)
        torch.ops.aten.gelu_backward.grad_input(gradient * value, gate, grad_input=to_gate)
        return both
