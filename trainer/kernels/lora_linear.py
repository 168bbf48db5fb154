"""Projections with the same input, each with its LoRA, as one matrix product.

y = x W^T + s (x A^T) B^T for every projection (LoRA, section 3.2.1 of the paper). Legend: T tokens (all of a batch),
I and O widths, r rank, R the ranks of all projections together, s = alpha / rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from trainer.lora.adapter import NAME

if TYPE_CHECKING:  # slow to load
    from peft.tuners.lora import LoraLayer

ALIGNED = 8
"""Half-precision numbers in the 16 bytes that a GPU's tensor cores load at a time."""


class FusedLoraLinear:
    """The linear layers `layers`, plain or peft's, applied to one input: (..., I) -> (..., sum of their O).

    Their frozen weights move into one tensor, of which each layer keeps its rows as a view: no extra memory, and each layer
    still works by itself. The factors stay peft's own parameters.
    """

    def __init__(self, layers: list[torch.nn.Linear | LoraLayer]) -> None:
        bases = [layer if isinstance(layer, torch.nn.Linear) else layer.get_base_layer() for layer in layers]
        self.weight = torch.cat([base.weight.data for base in bases])
        self.bias = torch.cat([base.bias.data for base in bases]) if bases[0].bias is not None else None
        rows = [base.weight.shape[0] for base in bases]
        for base, part in zip(bases, self.weight.split(rows), strict=True):
            base.weight.data = part
        self.adapted: list[tuple[LoraLayer, int]] = [
            (layer, start) for layer, start in zip(layers, _starts(rows), strict=True)
            if not isinstance(layer, torch.nn.Linear) and NAME in layer.lora_A]

    def __call__(self, x: Tensor) -> Tensor:
        downs = [layer.lora_A[NAME].weight for layer, _ in self.adapted]
        ups = [layer.lora_B[NAME].weight for layer, _ in self.adapted]
        scales = [layer.scaling[NAME] for layer, _ in self.adapted]
        starts = [start for _, start in self.adapted]
        if not downs:
            return functional.linear(x, self.weight, self.bias)
        y: Tensor = _JointProduct.apply(x, self.weight, self.bias, scales, starts, *downs, *ups)
        return y


class _Context(Protocol):
    """The type of the context that torch passes from the forward to the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    scales: list[float]
    starts: list[int]
    ranks: list[int]
    heights: list[int]
    factor_dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _JointProduct(torch.autograd.Function):
    """One product [x, x A^T] [W, s B]^T, so that y is written once instead of written, read and added to.

    The small s B A is not added to W, where half precision would round it away. The ranks are padded with zeros to a multiple
    of `ALIGNED`, which tensor cores need for full speed.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, scales: list[float],
                starts: list[int], *factors: Tensor) -> Tensor:  # fmt: skip
        downs, ups = _halves(factors)
        ranks = [down.shape[0] for down in downs]
        down = functional.pad(torch.cat(downs), (0, 0, 0, -sum(ranks) % ALIGNED)).to(x.dtype)  # (R, I)
        up = _diagonal(ups, scales, starts, len(weight), len(down)).to(x.dtype)  # (O, R)
        low = functional.linear(x, down)
        ctx.scales, ctx.starts, ctx.ranks, ctx.heights = scales, starts, ranks, [len(up) for up in ups]
        ctx.factor_dtype = ups[0].dtype
        ctx.save_for_backward(x, low, weight, down, up)
        return functional.linear(torch.cat([x, low], -1), torch.cat([weight, up], 1), bias)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, down, up = ctx.saved_tensors
        dy, width = gradient.flatten(0, -2), x.shape[-1]
        dx = None
        if ctx.needs_input_grad[0]:
            both = dy @ torch.cat([weight, up], 1)  # dy is read once for x and for x A^T
            back = both[:, width:]
            dx = both[:, :width].view_as(x) + (back @ down).view_as(x)
        else:
            back = dy @ up
        downs_gradient = (back.T @ x.flatten(0, -2))[: sum(ctx.ranks)].to(ctx.factor_dtype).split(ctx.ranks)
        blocks = (dy.T @ low.flatten(0, -2)).to(ctx.factor_dtype)  # (O, R); only its diagonal blocks are used
        ups_gradient = [blocks[start : start + rows, column : column + rank] * scale for start, rows, column, rank, scale
                        in zip(ctx.starts, ctx.heights, _starts(ctx.ranks), ctx.ranks, ctx.scales, strict=True)]
        return dx, None, None, None, None, *downs_gradient, *ups_gradient


def _diagonal(ups: list[Tensor], scales: list[float], starts: list[int], height: int, width: int) -> Tensor:
    """s B of every projection in its own rows and columns, (height, width) float32, the rest 0."""
    rows, done = [], 0
    for up, scale, start, column in zip(ups, scales, starts, _starts([up.shape[1] for up in ups]), strict=True):
        rows.append(functional.pad(up * scale, (column, width - column - up.shape[1], start - done, 0)))
        done = start + len(up)
    return functional.pad(torch.cat(rows), (0, 0, 0, height - done))


def _halves(factors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    half = len(factors) // 2
    return list(factors[:half]), list(factors[half:])


def _starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths))]
