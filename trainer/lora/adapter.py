"""The LoRA on the UNet: peft puts it there and gives the names; diffusers' form of its weights comes out.

Section 3.2.1: W_0 + Delta W = W_0 + (alpha / rank) B A, A Gaussian and B zero at the start.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from convert import sd15
from convert.errors import JobError, UsageError
from trainer.recipe import TARGETS, Recipe
from trainer.rng import Stream, generator_of
from trainer.terminal import quiet

NAME = "default"


def layers(unet: Any, recipe: Recipe) -> list[str]:
    """Names of the layers of `unet` (a diffusers UNet2DConditionModel) that `recipe` makes learn.

    Raises:
        UsageError: `--targets` matches no linear or convolution layer, or one that has no place in a LoRA file.
    """
    found = [name for name, module in unet.named_modules()
              if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and re.fullmatch(recipe.target_pattern, name)]
    if not found:
        raise UsageError(f"--targets {recipe.targets!r} matches none of the UNet's layers: use one of "
                         f"{', '.join(TARGETS)} or an expression for names like 'down_blocks.0.attentions.0.….to_q'")
    placeless = sorted(set(found) - {module.name for module in sd15.modules().values()})
    if placeless:
        raise UsageError(f"--targets {recipe.targets!r} matches {placeless[0]} ({len(placeless)} such), which has no name in a "
                         "LoRA file: no host would find it")
    return found


def attach(unet: Any, recipe: Recipe) -> list[tuple[str, torch.nn.Parameter]]:
    """Put a fresh LoRA on `unet`; its factors by peft's names, float32, in order. Raises as `layers`."""
    from peft import LoraConfig

    # the list, not the expression: peft would also wrap what it cannot train, and fail on it
    unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.true_alpha, target_modules=layers(unet, recipe),
                                lora_dropout=0.0, init_lora_weights="gaussian"), adapter_name=NAME)
    factors = [(name, p) for name, p in unet.named_parameters() if ".lora_" in name]
    generator = generator_of(recipe.seed, Stream.FACTORS)
    for name, factor in factors:
        factor.data = factor.data.float()
        factor.requires_grad_(True)
        if ".lora_A." in name:  # peft's Gaussian, std 1 / rank, from our own seed
            factor.data.copy_(torch.randn(factor.shape, generator=generator) / recipe.rank)
    return factors


def set_scale(unet: Any, scale: float) -> None:
    """Weigh the adapter: 0 is the base, 1 the full LoRA."""
    unet.set_adapters([NAME], [scale])


def save(unet: Any, folder: Path) -> Path:
    """Write `folder`/pytorch_lora_weights.safetensors, diffusers' form, with alpha in its metadata; returns its path."""
    with quiet():
        from diffusers import StableDiffusionPipeline
        from diffusers.training_utils import _collate_lora_metadata
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=NAME))
    weights = {name: weight.contiguous() for name, weight in weights.items()}  # convolutions' may be channels_last
    try:
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights, **_collate_lora_metadata({"unet": unet}))
    except SafetensorError as error:
        raise JobError(f"{folder}: the LoRA cannot be written ({error}): make room on this disk; the same command goes on "
                       "from the last checkpoint") from error
    return folder / "pytorch_lora_weights.safetensors"


def load_factors(factors: list[tuple[str, torch.nn.Parameter]], stored: dict[str, Tensor], source: Path) -> None:
    """Copy `stored` into the factors. JobError names what does not fit."""
    names = {name for name, _ in factors}
    if names != set(stored):
        strange = sorted(names ^ set(stored))
        raise JobError(f"{source}: its factors are not this run's ({len(strange)} differ, first {strange[0]})")
    for name, factor in factors:
        factor.data.copy_(stored[name])
