"""Projections that read the same input, each with its LoRA, as one product.

y = x W^T + s (x A^T) B^T for every projection (LoRA, section 3.2.1 of the paper). Legend: T tokens (all of a batch),
I and O widths, r rank, R the ranks of all projections together, s = alpha / rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.adapter import NAME


def by_hand(x: Tensor) -> bool:
    """Whether our own derivatives compute on `x`: in float32 on a CPU. A compiler and a GPU get plain operations."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class Joined:
    """The linear layers `layers`, plain or peft's, applied to one input: (..., I) -> (..., sum of their O).

    Their frozen weights move into one tensor, of which each layer keeps its rows: no byte more, and the layers go on
    working by themselves. The factors stay peft's own parameters.
    """

    def __init__(self, layers: list[Any]) -> None:
        bases = [layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer for layer in layers]
        self.weight = torch.cat([base.weight.data for base in bases])
        self.bias = torch.cat([base.bias.data for base in bases]) if bases[0].bias is not None else None
        self.rows = [base.weight.shape[0] for base in bases]
        for base, part in zip(bases, self.weight.split(self.rows), strict=True):
            base.weight.data = part
        self.adapted = [(layer, start) for layer, start in zip(layers, _starts(self.rows), strict=True)
                        if NAME in getattr(layer, "lora_A", {})]

    def __call__(self, x: Tensor) -> Tensor:
        downs = [layer.lora_A[NAME].weight for layer, _ in self.adapted]
        ups = [layer.lora_B[NAME].weight for layer, _ in self.adapted]
        scales = [layer.scaling[NAME] for layer, _ in self.adapted]
        starts = [start for _, start in self.adapted]
        if not downs:
            return functional.linear(x, self.weight, self.bias)
        if by_hand(x):
            y: Tensor = _Folded.apply(x, self.weight, self.bias, scales, starts, *downs, *ups)
            return y
        low = functional.linear(x, torch.cat(downs).to(x.dtype))  # (..., R): x is read once for all projections
        return functional.linear(x, self.weight, self.bias) + functional.linear(low, self._blocks().to(x.dtype))

    def _blocks(self) -> Tensor:
        """s B of every projection on the diagonal, (sum of O, R); no column for one without a LoRA."""
        adapted = {start: layer.lora_B[NAME].weight * layer.scaling[NAME] for layer, start in self.adapted}
        return torch.block_diag(*[adapted.get(start, self.weight.new_zeros(rows, 0))
                                  for start, rows in zip(_starts(self.rows), self.rows, strict=True)])


class _Folded(torch.autograd.Function):
    """One product with W + s B A, for float32: in half precision the small s B A would be rounded away.

    Narrow products have their narrow side as rows: with it as columns, MKL is three times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scales: list[float], starts: list[int],
                *factors: Tensor) -> Tensor:  # fmt: skip
        folded = weight.clone()
        downs, ups = _halves(factors)
        for down, up, scale, start in zip(downs, ups, scales, starts, strict=True):
            folded[start : start + len(up)].addmm_(up, down, alpha=scale)
        ctx.scales, ctx.starts = scales, starts
        ctx.save_for_backward(x, folded, *factors)
        return functional.linear(x, folded, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, folded, *factors = ctx.saved_tensors
        downs, ups = _halves(factors)
        dy, tokens = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = (dy @ folded).view_as(x) if ctx.needs_input_grad[0] else None
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


def _halves(factors: Any) -> tuple[list[Tensor], list[Tensor]]:
    half = len(factors) // 2
    return list(factors[:half]), list(factors[half:])


def _starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths))]
