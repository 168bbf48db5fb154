"""Narrow to wide and back: networks and LoRAs of the miniature in Stable Diffusion 1.5's exact shapes.

Every channel of a narrow layer is copied k times and the input columns are divided by k, as in Net2Net (Chen et al. 2016), so
the wide network computes the same function. Group norms keep their number of groups, with k times as many channels in each and
the same statistics. Queries are divided by the square root of the copies within a head, whose products sum that many more
terms. A narrow sinusoidal time embedding is every k-th column of the wide one. Which layer follows which rule stands in one
table a network (`_UNET`, `_TEXT`, `_VAE`); weights, LoRA factors and their inverses are all read from it.

Shapes: a weight is (out, in) or (out, in, k, k), a bias or norm (out,), `down` (rank, in, ...), `up` (out, rank, ...). All
functions are elementwise, so results are the same bytes on every machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

UNET, TEXT, VAE = "unet", "text_encoder", "vae"


@dataclass(frozen=True, kw_only=True)
class Factors:
    """How many times wider. The defaults lead from the miniature to SD1.5."""

    unet: int = 5
    text_heads: int = 3
    """copies of each head of the text encoder, and below of each channel within a head"""
    text_channels: int = 4
    vae: int = 8
    heads: int = 4
    """of the narrow text encoder"""
    vae_groups: int = 4
    """of the narrow autoencoder's group norms"""

    @property
    def text(self) -> int:
        return self.text_heads * self.text_channels


SD15 = Factors()


@dataclass(frozen=True)
class Axis:
    """One side of a weight: wide place i holds what narrow place `index(n)[i]` holds, or zero where that is -1."""

    copies: int
    """of each narrow place; wide places = copies * narrow places, where `sparse` is not set"""
    order: Callable[[int], Tensor]
    sparse: int = 1
    """Narrow places lie this far apart, with zeros between them."""

    @property
    def factor(self) -> int:
        """Wide places for each narrow one."""
        return self.copies * self.sparse

    def spread(self, narrow: Tensor, dim: int) -> Tensor:
        """Narrow -> wide along `dim`."""
        index = self.order(narrow.shape[dim])
        wide = narrow.index_select(dim, index.clamp(min=0))
        return wide if self.sparse == 1 else wide * _along(index >= 0, wide, dim)

    def gather(self, wide: Tensor, dim: int) -> Tensor:
        """Wide -> narrow along `dim`: the mean of the copies."""
        places = wide.shape[dim] // self.factor
        index = self.order(places)
        held = (index >= 0).nonzero()[:, 0]
        shape = list(wide.shape)
        shape[dim] = places
        return wide.new_zeros(shape).index_add_(dim, index[held], wide.index_select(dim, held)) / self.copies


def _along(mask: Tensor, like: Tensor, dim: int) -> Tensor:
    return mask.to(like.dtype).view([-1 if d == dim else 1 for d in range(like.ndim)])


@dataclass(frozen=True)
class Rule:
    """How a layer is widened: its output rows, its input columns, and what is multiplied in (the queries' factor)."""

    rows: Axis
    columns: Axis
    scale: float = 1.0
    summed: bool = True
    """The columns are summed over, so they are divided by their copies; an embedding's are not."""

    @property
    def _divisor(self) -> int:
        return self.columns.copies if self.summed else 1

    def weight(self, narrow: Tensor) -> Tensor:
        """A weight, bias or norm, narrow -> wide."""
        return self.rows.spread(self.columns_of(narrow), 0)

    def columns_of(self, narrow: Tensor) -> Tensor:
        """`weight` without the copies of the rows."""
        wide = self.columns.spread(narrow, 1) / self._divisor if narrow.ndim > 1 else narrow
        return wide * self.scale if self.scale != 1 else wide

    def narrow_weight(self, wide: Tensor) -> Tensor:
        """A weight, bias or norm, wide -> narrow; the mean where copies differ."""
        narrow = self.rows.gather(wide, 0)
        if narrow.ndim > 1:
            narrow = self.columns.gather(narrow, 1) * self._divisor
        return narrow / self.scale

    def up(self, narrow: Tensor) -> Tensor:
        """A LoRA's `up` (out, rank, ...)."""
        return self.rows.spread(narrow, 0) * self.scale

    def narrow_up(self, wide: Tensor) -> Tensor:
        return self.rows.gather(wide, 0) / self.scale

    def down(self, narrow: Tensor) -> Tensor:
        """A LoRA's `down` (rank, in, ...)."""
        return self.columns.spread(narrow, 1) / self._divisor

    def narrow_down(self, wide: Tensor) -> Tensor:
        return self.columns.gather(wide, 1) * self._divisor

    def magnitude(self, narrow: Tensor) -> Tensor:
        """DoRA's norms of the output rows, any shape that begins with `out`: each has `copies` equal terms for one."""
        return self.rows.spread(narrow, 0) * (self.scale / math.sqrt(self.columns.copies))

    def narrow_magnitude(self, wide: Tensor) -> Tensor:
        return self.rows.gather(wide, 0) / (self.scale / math.sqrt(self.columns.copies))

    def column_magnitude(self, narrow: Tensor) -> Tensor:
        """DoRA's norms of the input columns as LyCORIS keeps them, (1, in, ...)."""
        return self.columns.spread(narrow, 1) * (self.scale * math.sqrt(self.rows.copies) / self._divisor)

    def narrow_column_magnitude(self, wide: Tensor) -> Tensor:
        return self.columns.gather(wide, 1) / (self.scale * math.sqrt(self.rows.copies) / self._divisor)

    def gradient(self, wide: Tensor) -> Tensor:
        """The gradient of a narrow weight from that of the wide: `weight`'s transpose."""
        narrow = self.rows.gather(wide, 0) * self.rows.copies
        if narrow.ndim > 1:
            narrow = self.columns.gather(narrow, 1) * (self.columns.copies / self._divisor)
        return narrow * self.scale


def _same() -> Axis:
    return Axis(1, torch.arange)


def _each(copies: int) -> Axis:
    """Every place copied where it stands, which holds through concatenations."""
    return Axis(copies, lambda n: torch.arange(n).repeat_interleave(copies))


def _every(step: int) -> Axis:
    """Every `step`-th place, zeros between."""

    def order(n: int) -> Tensor:
        index = torch.full((n * step,), -1)
        index[::step] = torch.arange(n)
        return index

    return Axis(1, order, sparse=step)


def _heads(heads: int, head_copies: int, channel_copies: int) -> Axis:
    """Whole heads copied, and each of their channels in place."""

    def order(n: int) -> Tensor:
        by_head = torch.arange(n).view(heads, 1, n // heads, 1)
        return by_head.expand(-1, head_copies, -1, channel_copies).reshape(-1)

    return Axis(head_copies * channel_copies, order)


def _groups(groups: int, copies: int) -> Axis:
    """Whole groups of a group norm copied."""
    return Axis(copies, lambda n: torch.arange(n).view(groups, 1, n // groups).expand(-1, copies, -1).reshape(-1))


Table = tuple[tuple[str, Rule], ...]
"""(pattern of a module's whole name, rule); the first that matches counts"""


def _unet_table(by: Factors) -> Table:
    each, same = _each(by.unet), _same()
    root = 1 / math.sqrt(by.unet)
    return (
        (r"conv_in", Rule(each, same)),
        (r"conv_out", Rule(same, each)),
        (r"time_embedding\.linear_1", Rule(each, _every(by.unet))),
        (r".*\.attn2\.to_[kv]", Rule(each, _each(by.text))),
        (r".*\.to_q", Rule(each, each, root)),
        (r".*", Rule(each, each)),
    )


def _text_table(by: Factors) -> Table:
    each, heads = _each(by.text), _heads(by.heads, by.text_heads, by.text_channels)
    return (
        (r".*_embedding", Rule(_same(), each, summed=False)),
        (r".*\.q_proj", Rule(heads, each, 1 / math.sqrt(by.text_channels))),
        (r".*\.[kv]_proj", Rule(heads, each)),
        (r".*\.out_proj", Rule(each, heads)),
        (r".*", Rule(each, each)),
    )


def _vae_table(by: Factors) -> Table:
    groups, same = _groups(by.vae_groups, by.vae), _same()
    return (
        (r"(post_)?quant_conv", Rule(same, same)),
        (r"(en|de)coder\.conv_in", Rule(groups, same)),
        (r"(en|de)coder\.conv_out", Rule(same, groups)),
        (r".*\.to_q", Rule(groups, groups, 1 / math.sqrt(by.vae))),
        (r".*", Rule(groups, groups)),
    )


@cache
def _table(network: str, by: Factors) -> Table:
    return {UNET: _unet_table, TEXT: _text_table, VAE: _vae_table}[network](by)


def rule(network: str, module: str, by: Factors = SD15) -> Rule:
    """The rule of the module with this diffusers (or transformers) name in `UNET`, `TEXT` or `VAE`."""
    return next(found for pattern, found in _table(network, by) if re.fullmatch(pattern, module))


def widen(network: str, narrow: Mapping[str, Tensor], by: Factors = SD15) -> dict[str, Tensor]:
    """A whole state dict, narrow -> wide. The text encoder's further layers are not in it (see `silent_layer`)."""
    return {name: rule(network, name.rpartition(".")[0], by).weight(tensor) for name, tensor in narrow.items()}


def narrow(network: str, wide: Mapping[str, Tensor], by: Factors = SD15) -> dict[str, Tensor]:
    """A whole state dict, wide -> narrow: `widen`'s inverse."""
    return {name: rule(network, name.rpartition(".")[0], by).narrow_weight(tensor) for name, tensor in wide.items()}


def silent_layer(width: int, inner: int) -> dict[str, Tensor]:
    """A layer of CLIP's text encoder that adds nothing: weights and biases of zero, norms of one; names without a prefix."""
    square = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    shapes = dict.fromkeys(square, (width, width)) | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    layer = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    layer |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    for norm in ("layer_norm1", "layer_norm2"):
        layer |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    return layer
