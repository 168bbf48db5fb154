"""Attention over joined projections: PyTorch's fused kernels, and on a CPU a kernel of plain products for short sequences.

Legend: B pictures, H heads, n queries, m keys, d width of a head, C = H d.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.kernels.context import Context
from trainer.kernels.cpu import WIDE, use_cpu_kernels
from trainer.kernels.lora_linear import FusedLoraLinear

if TYPE_CHECKING:  # slow to load
    from diffusers.models.attention_processor import Attention

NARROW = 16
"""Heads up to this wide: PyTorch's AVX2 kernel takes 1.6 times as long for 10 wide ones, and less from 20 on."""
CHUNK = 1 << 18
"""Probabilities computed at a time, 1 MiB: what a core's cache holds. 4 MiB take 1.3 times, all at once 3 times as long."""


class FusedProcessor:
    """diffusers' attention processor for SD1.5's blocks: q, k, v of a self-attention from one product; k, v of a caption."""

    def __init__(self, attn: Attention, *, cross: bool) -> None:
        self.first = FusedLoraLinear([attn.to_q] if cross else [attn.to_q, attn.to_k, attn.to_v])
        self.second = FusedLoraLinear([attn.to_k, attn.to_v]) if cross else None
        self.out = FusedLoraLinear([attn.to_out[0]])

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:  # fmt: skip
        first = self.first(hidden_states)
        second = None
        if self.second is not None:
            assert encoder_hidden_states is not None
            second = self.second(encoder_hidden_states)
        return self.out(attend(first, second, attn.heads))


def attend(first: Tensor, second: Tensor | None, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (B, n, C); `first` is q, k, v (B, n, 3 C), or q (B, n, C) and `second` k, v (B, m, 2 C)."""
    width = first.shape[-1] // (3 if second is None else 1)
    if use_cpu_kernels(first) and not WIDE and width // heads <= NARROW:
        mixed: Tensor = _Attention.apply(first, second, heads)
        return mixed
    q, k, v = _split(first, second, heads)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _split(first: Tensor, second: Tensor | None, heads: int) -> list[Tensor]:
    """q, k, v, each a view (B, H, tokens, d)."""
    width = first.shape[-1] // 3 if second is None else first.shape[-1]
    parts = [*first.split(width, -1), *(second.split(width, -1) if second is not None else ())]
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]


class _AttentionContext(Context, Protocol):
    heads: int
    joined: bool


class _Attention(torch.autograd.Function):
    """Attention a few heads at a time, computed again for the backward pass: n m numbers never leave the cache.

    Every product has its narrow side d as rows, tokens as columns; with d as columns MKL is three times slower.
    """

    @staticmethod
    def forward(ctx: _AttentionContext, first: Tensor, second: Tensor | None, heads: int) -> Tensor:
        q, k, v = _columns(_split(first, second, heads))
        q *= q.shape[1] ** -0.5
        mixed = torch.empty_like(q)
        for rows, s, p in _chunks(q, k):
            torch.softmax(torch.bmm(q[rows].transpose(1, 2), k[rows], out=s), -1, out=p)
            torch.bmm(v[rows], p.transpose(1, 2), out=mixed[rows])
        ctx.save_for_backward(q, k, v)
        ctx.heads, ctx.joined = heads, second is None
        return _tokens([mixed], heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: _AttentionContext, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        q, k, v = ctx.saved_tensors
        (do,) = _columns([gradient.unflatten(-1, (ctx.heads, -1)).transpose(1, 2)])
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for rows, s, p in _chunks(q, k):
            torch.softmax(torch.bmm(q[rows].transpose(1, 2), k[rows], out=s), -1, out=p)
            torch.bmm(do[rows], p, out=dv[rows])
            torch.bmm(do[rows].transpose(1, 2), v[rows], out=s)
            ds = torch._softmax_backward_data(s, p, -1, p.dtype)
            torch.bmm(k[rows], ds.transpose(1, 2), out=dq[rows])
            torch.bmm(q[rows], ds, out=dk[rows])
        dq *= q.shape[1] ** -0.5
        if ctx.joined:
            return _tokens([dq, dk, dv], ctx.heads), None, None
        return _tokens([dq], ctx.heads), _tokens([dk, dv], ctx.heads), None


def _columns(parts: list[Tensor]) -> list[Tensor]:
    """(B, H, tokens, d) -> copies (B H, d, tokens)."""
    return [part.transpose(2, 3).clone(memory_format=torch.contiguous_format).flatten(0, 1) for part in parts]


def _tokens(parts: list[Tensor], heads: int) -> Tensor:
    """Each (B H, d, tokens) -> joined (B, tokens, len(parts) H d)."""
    return torch.stack([part.unflatten(0, (-1, heads)) for part in parts], 1).permute(0, 4, 1, 2, 3).flatten(2)


def _chunks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of (B H), and room for their (rows, n, m) numbers twice."""
    n, m = q.shape[2], k.shape[2]
    step = max(1, CHUNK // (n * m))
    room = q.new_empty(2, min(step, len(q)), n, m)
    for start in range(0, len(q), step):
        count = min(step, len(q) - start)
        yield slice(start, start + count), room[0, :count], room[1, :count]
