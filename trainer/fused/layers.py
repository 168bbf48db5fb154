"""Convolutions and gates, where their plain forms copy more than they need or meet a slow kernel.

Legend: B pictures, C channels, h and w of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.fused.lora import by_hand

WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""oneDNN's kernels are others there: see docs/PERFORMANCE.md for what each was measured to do."""
ONE = (1, 1), (1, 1), (0, 0), 1
"""Kernel, stride, padding and groups of a convolution that looks at one position at a time."""
SMALL = 16
"""Positions of a map up to which oneDNN's AVX-512 convolution is 1.7 to 3.3 times as slow in channels_last."""


def replacements(unet: Any) -> Iterator[tuple[torch.nn.Module, Callable[[Tensor], Tensor]]]:
    """Modules of `unet` and what to call instead of their `forward`.

    Bound methods of one function, which a compiler takes for alike: one graph serves all blocks of a size.
    """
    from diffusers.models.activations import GEGLU

    on_cpu = by_hand(next(unet.parameters()))
    for module in unet.modules():
        if type(module) is torch.nn.Conv2d and (module.kernel_size, module.stride, module.padding, module.groups) == ONE:
            yield module, MethodType(point, module)
        elif isinstance(module, GEGLU) and on_cpu:
            yield module, MethodType(gated, module)
        elif type(module) is torch.nn.Conv2d and on_cpu and WIDE:
            yield module, MethodType(small_map, module)


def _plainly_for_a_compiler(ours: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @wraps(ours)
    def forward(module: Any, x: Tensor) -> Tensor:
        result: Tensor = ours(module, x) if by_hand(x) else type(module).forward(module, x)
        return result

    return forward


def point(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as the matrix product it is: no copy where x (B, C, h, w) is channels_last."""
    pictures, _, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(pictures * height * width, -1)  # a product of two matrices, not of many small ones
    return functional.linear(tokens, conv.weight.flatten(1), conv.bias).view(pictures, height, width, -1).permute(0, 3, 1, 2)


@_plainly_for_a_compiler
def small_map(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of x (B, C, h, w), in NCHW where the map is small. Its weight changes its layout once."""
    if x.shape[2] * x.shape[3] <= SMALL:
        if not conv.weight.is_contiguous():
            conv.weight.data = conv.weight.data.contiguous()
        x = x.contiguous()
    return functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@_plainly_for_a_compiler
def gated(layer: Any, x: Tensor) -> Tensor:
    """value * gelu(gate) of one projection (Shazeer 2020, GLU variants)."""
    out: Tensor = _Gated.apply(layer.proj(x))
    return out


class _Gated(torch.autograd.Function):
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
