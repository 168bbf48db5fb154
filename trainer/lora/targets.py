"""Counts the layers that a recipe trains from a base's configuration, without its weights and without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from convert import sd15
from convert.errors import UsageError
from trainer.base.facts import BaseFacts
from trainer.base.sd15 import UNET_WIDTHS
from trainer.layers import TARGETS
from trainer.recipe import Recipe


def count(recipe: Recipe, base: BaseFacts) -> tuple[int, int]:
    """The numbers of trained modules and parameters. Raises UsageError if `--targets` matches no module."""
    unet = sd15.unet(base.unet.get("block_out_channels", UNET_WIDTHS), base.unet["cross_attention_dim"])
    shapes = [module.shape for module in unet if not module.is_norm and re.fullmatch(recipe.target_pattern, module.name)]
    if not shapes:
        raise no_match(recipe)
    # down is (rank, in, k, k) and up (out, rank); DoRA's magnitudes are (1, in)
    numbers = sum(recipe.rank_of(kernel_of(shape)) * (prod(shape[1:]) + shape[0]) + recipe.dora * shape[1] for shape in shapes)
    if not recipe.text_encoder:
        return len(shapes), numbers
    depth, width, inner = (base.text[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    depth -= recipe.clip_skip - 1
    each = recipe.rank * (8 * width + 2 * (width + inner)) + recipe.dora * (5 * width + inner)  # q, k, v, out; fc1, fc2
    return len(shapes) + 6 * depth, numbers + depth * each


def no_match(recipe: Recipe) -> UsageError:
    """The error for `--targets` that name no layer of the UNet."""
    return UsageError(f"--targets {recipe.targets!r} matches none of the UNet's layers: use one of {', '.join(TARGETS)} or an "
                      "expression for names like 'down_blocks.0.attentions.0.….to_q'")


def kernel_of(shape: Sequence[int]) -> int:
    """Side in pixels of a layer's filter, from its weight's shape: 1 for a linear layer, (out, in)."""
    return shape[-1] if len(shape) == 4 else 1
