"""Projections that read the same input, each with its LoRA, as one product.

y = x W^T + s (x A^T) B^T for every projection (LoRA, section 3.2.1 of the paper). Legend: T tokens (all of a batch),
I and O widths, r rank, R the ranks of all projections together, s = alpha / rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.kernels.context import Context
from trainer.kernels.cpu import use_cpu_kernels
from trainer.lora.adapter import NAME

if TYPE_CHECKING:  # slow to load
    from peft.tuners.lora import LoraLayer

ALIGNED = 8
"""Numbers of half precision in 16 bytes, what a GPU's tensor cores load at a time."""


class FusedLoraLinear:
    """The linear layers `layers`, plain or peft's, applied to one input: (..., I) -> (..., sum of their O).

    Their frozen weights move into one tensor, of which each layer keeps its rows: no byte more, and the layers go on
    working by themselves. The factors stay peft's own parameters.
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
        kind = _MergedProduct if use_cpu_kernels(x) else _ConcatenatedProduct
        y: Tensor = kind.apply(x, self.weight, self.bias, scales, starts, *downs, *ups)
        return y


class _MergedContext(Context, Protocol):
    scales: list[float]
    starts: list[int]


class _MergedProduct(torch.autograd.Function):
    """One product with W + s B A, for float32: in half precision the small s B A would be rounded away.

    Narrow products have their narrow side as rows: with it as columns, MKL is three times slower.
    """

    @staticmethod
    def forward(ctx: _MergedContext, x: Tensor, weight: Tensor, bias: Tensor | None, scales: list[float], starts: list[int],
                *factors: Tensor) -> Tensor:  # fmt: skip
        merged = weight.clone()
        downs, ups = _halves(factors)
        for down, up, scale, start in zip(downs, ups, scales, starts, strict=True):
            merged[start : start + len(up)].addmm_(up, down, alpha=scale)
        ctx.scales, ctx.starts = scales, starts
        ctx.save_for_backward(x, merged, *factors)
        return functional.linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _MergedContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, merged, *factors = ctx.saved_tensors
        downs, ups = _halves(factors)
        dy, tokens = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = (dy @ merged).view_as(x) if ctx.needs_input_grad[0] else None
        low = torch.cat(downs) @ tokens.T  # (R, T)
        back = torch.empty_like(low)  # s B^T dy^T, (R, T)
        ups_gradient, row = [], 0
        for up, scale, start in zip(ups, ctx.scales, ctx.starts, strict=True):
            mine, dy_mine = slice(row, row + up.shape[1]), dy[:, start : start + len(up)]
            torch.mm(up.T * scale, dy_mine.T, out=back[mine])
            ups_gradient.append((low[mine] @ dy_mine).T * scale)
            row = mine.stop
        downs_gradient = (back @ tokens).split([down.shape[0] for down in downs])
        return dx, None, None, None, None, *downs_gradient, *ups_gradient


class _ConcatenatedContext(_MergedContext, Protocol):
    ranks: list[int]
    heights: list[int]
    learnt: torch.dtype


class _ConcatenatedProduct(torch.autograd.Function):
    """One product [x, x A^T] [W, s B]^T, for half precision and GPUs: y is written once, and never read to add to it.

    The ranks are filled up with zeros to a multiple of `ALIGNED`, without which tensor cores are not fed at full width.
    """

    @staticmethod
    def forward(ctx: _ConcatenatedContext, x: Tensor, weight: Tensor, bias: Tensor | None, scales: list[float],
                starts: list[int], *factors: Tensor) -> Tensor:  # fmt: skip
        downs, ups = _halves(factors)
        ranks = [down.shape[0] for down in downs]
        down = functional.pad(torch.cat(downs), (0, 0, 0, -sum(ranks) % ALIGNED)).to(x.dtype)  # (R, I)
        up = _diagonal(ups, scales, starts, len(weight), len(down)).to(x.dtype)  # (O, R)
        low = functional.linear(x, down)
        ctx.scales, ctx.starts, ctx.ranks, ctx.heights = scales, starts, ranks, [len(up) for up in ups]
        ctx.learnt = ups[0].dtype
        ctx.save_for_backward(x, low, weight, down, up)
        return functional.linear(torch.cat([x, low], -1), torch.cat([weight, up], 1), bias)

    @staticmethod
    def backward(ctx: _ConcatenatedContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, down, up = ctx.saved_tensors
        dy, width = gradient.flatten(0, -2), x.shape[-1]
        dx = None
        if ctx.needs_input_grad[0]:
            both = dy @ torch.cat([weight, up], 1)  # dy is read once for x and for x A^T
            back = both[:, width:]
            dx = both[:, :width].view_as(x) + (back @ down).view_as(x)
        else:
            back = dy @ up
        downs_gradient = (back.T @ x.flatten(0, -2))[: sum(ctx.ranks)].to(ctx.learnt).split(ctx.ranks)
        blocks = (dy.T @ low.flatten(0, -2)).to(ctx.learnt)  # (O, R), of which the diagonal is wanted
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
