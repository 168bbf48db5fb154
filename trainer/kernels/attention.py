"""Attention over joined projections, with PyTorch's fused kernels.

Legend: B pictures, H heads, n queries, m keys, C channels of all heads together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from trainer.kernels.lora_linear import FusedLoraLinear

if TYPE_CHECKING:  # slow to load
    from diffusers.models.attention_processor import Attention


class FusedProcessor:
    """An attention processor for SD1.5's blocks: one product for q, k, v of self-attention, or for k, v of a caption."""

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
    """softmax(q k^T / sqrt(C / H)) v, (B, n, C). `first`: q, k, v (B, n, 3 C), or q (B, n, C) and `second` k, v (B, m, 2 C)."""
    width = first.shape[-1] // 3 if second is None else first.shape[-1]
    parts = [*first.split(width, -1), *(second.split(width, -1) if second is not None else ())]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
