"""Widens networks and LoRAs of the miniature to Stable Diffusion 1.5's exact shapes, and narrows them again.

Every channel of a narrow layer is copied k times and the input columns are divided by k, as in Net2Net (Chen et al. 2016), so
the wide network computes the same function. Group norms keep their number of groups, with k times as many channels in each and
the same statistics. Queries are divided by the square root of the copies within a head, because dot products sum that many
more terms. A narrow sinusoidal time embedding is every k-th column of the wide one. The rule of each layer is in one table per
network (`_unet_table`, `_text_table`, `_vae_table`), from which weights, LoRA factors and their inverses are all derived.

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
    """The widening factors. The defaults turn the miniature into SD1.5."""

    unet: int = 5
    text_heads: int = 3
    """copies of each head of the text encoder; the next field is copies of each channel within a head"""
    text_channels: int = 4
    vae: int = 8
    heads: int = 4
    """heads of the narrow text encoder"""
    vae_groups: int = 4
    """groups of the narrow autoencoder's group norms"""

    @property
    def text(self) -> int:
        return self.text_heads * self.text_channels


SD15 = Factors()


@dataclass(frozen=True)
class Axis:
    """One axis of a weight: wide index i gets the value at narrow index `index(n)[i]`, or zero if that is -1."""

    copies: int
    """copies of each narrow index; the wide size is copies * the narrow size, unless `sparse` is set"""
    order: Callable[[int], Tensor]
    sparse: int = 1
    """Narrow indices are this far apart, with zeros between them."""

    @property
    def factor(self) -> int:
        """Wide indices for each narrow one."""
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
    """How to widen a layer: its output rows, its input columns, and a factor (for the queries)."""

    rows: Axis
    columns: Axis
    scale: float = 1.0
    summed: bool = True
    """Whether the columns are summed over and so divided by their copies; an embedding's are not."""

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
        """A weight, bias or norm, wide -> narrow; the mean if copies differ."""
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
        """DoRA's norms of the output rows, in any shape that begins with `out`: each sums `copies` equal terms per column."""
        return self.rows.spread(narrow, 0) * (self.scale / math.sqrt(self.columns.copies))

    def narrow_magnitude(self, wide: Tensor) -> Tensor:
        return self.rows.gather(wide, 0) / (self.scale / math.sqrt(self.columns.copies))

    def column_magnitude(self, narrow: Tensor) -> Tensor:
        """DoRA's norms of the input columns in LyCORIS's form, (1, in, ...)."""
        return self.columns.spread(narrow, 1) * (self.scale * math.sqrt(self.rows.copies) / self._divisor)

    def narrow_column_magnitude(self, wide: Tensor) -> Tensor:
        return self.columns.gather(wide, 1) / (self.scale * math.sqrt(self.rows.copies) / self._divisor)

    def gradient(self, wide: Tensor) -> Tensor:
        """The gradient of the narrow weight from that of the wide one: the transpose of `weight`."""
        narrow = self.rows.gather(wide, 0) * self.rows.copies
        if narrow.ndim > 1:
            narrow = self.columns.gather(narrow, 1) * (self.columns.copies / self._divisor)
        return narrow * self.scale


def _same() -> Axis:
    return Axis(1, torch.arange)


def _each(copies: int) -> Axis:
    """Every index repeated in place, which is compatible with concatenation."""
    return Axis(copies, lambda n: torch.arange(n).repeat_interleave(copies))


def _every(step: int) -> Axis:
    """Every `step`-th index, with zeros between."""

    def order(n: int) -> Tensor:
        index = torch.full((n * step,), -1)
        index[::step] = torch.arange(n)
        return index

    return Axis(1, order, sparse=step)


def _heads(heads: int, head_copies: int, channel_copies: int) -> Axis:
    """Whole heads copied, and each of their channels repeated in place."""

    def order(n: int) -> Tensor:
        by_head = torch.arange(n).view(heads, 1, n // heads, 1)
        return by_head.expand(-1, head_copies, -1, channel_copies).reshape(-1)

    return Axis(head_copies * channel_copies, order)


def _groups(groups: int, copies: int) -> Axis:
    """Whole groups of a group norm copied."""
    return Axis(copies, lambda n: torch.arange(n).view(groups, 1, n // groups).expand(-1, copies, -1).reshape(-1))


Table = tuple[tuple[str, Rule], ...]
"""(pattern of a module's full name, rule); the first match wins"""


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
    """A whole state dict, narrow -> wide, without the text encoder's additional layers (see `silent_layer`)."""
    return {name: rule(network, name.rpartition(".")[0], by).weight(tensor) for name, tensor in narrow.items()}


def narrow(network: str, wide: Mapping[str, Tensor], by: Factors = SD15) -> dict[str, Tensor]:
    """A whole state dict, wide -> narrow: `widen`'s inverse."""
    return {name: rule(network, name.rpartition(".")[0], by).narrow_weight(tensor) for name, tensor in wide.items()}


def silent_layer(width: int, inner: int) -> dict[str, Tensor]:
    """An identity layer of CLIP's text encoder: zero weights and biases, norms of one; names without a prefix."""
    square = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    shapes = dict.fromkeys(square, (width, width)) | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    layer = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    layer |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    for norm in ("layer_norm1", "layer_norm2"):
        layer |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    return layer
