"""Layers between the attentions whose plain forms copy or keep more than they need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.fused.lora import by_hand


def conv_1x1(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as the matrix product it is: no copy where x (B, C, h, w) is channels_last."""
    return functional.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def geglu(layer: Any, x: Tensor) -> Tensor:
    """value * gelu(gate) of one projection (Shazeer 2020, GLU variants)."""
    joined = layer.proj(x)
    if by_hand(joined):
        gated: Tensor = _Geglu.apply(joined)
        return gated
    value, gate = joined.chunk(2, dim=-1)
    return value * functional.gelu(gate)


class _Geglu(torch.autograd.Function):
    """Writes both gradients into one tensor; autograd's own chunk makes two and copies them together."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor) -> Tensor:
        value, gate = joined.chunk(2, dim=-1)
        opened = functional.gelu(gate)
        ctx.save_for_backward(joined, opened)
        return value * opened

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        joined, opened = ctx.saved_tensors
        value, gate = joined.chunk(2, dim=-1)
        both = torch.empty_like(joined)
        to_value, to_gate = both.chunk(2, dim=-1)
        torch.mul(gradient, opened, out=to_value)
        torch.ops.aten.gelu_backward.grad_input(gradient * value, gate, grad_input=to_gate)
        return both
