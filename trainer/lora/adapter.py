"""The LoRA on the UNet and the text encoder: attached and named by peft, saved in diffusers' form.

Section 3.2.1: W_0 + Delta W = W_0 + (alpha / rank) B A, A Gaussian and B zero at the start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from convert import sd15
from convert.errors import JobError, UsageError
from convert.files import atomic_path
from trainer.base.models import Model, Network, TextEncoder, UNet
from trainer.lora import dora
from trainer.lora.dora import NAME
from trainer.lora.targets import kernel_of, no_match
from trainer.recipe import Recipe
from trainer.rng import Stream, generator_of
from trainer.terminal import quiet

Layer = torch.nn.Linear | torch.nn.Conv2d
Factor = tuple[str, torch.nn.Parameter]
"""A factor with its name."""
TEXT_TARGETS = r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
TEXT_FACTORS = "text_encoder."
"""Prefix of the names of the text encoder's factors; those of the UNet's have none."""


def layers(unet: UNet, recipe: Recipe) -> dict[str, Layer]:
    """The layers of `unet` (a diffusers UNet2DConditionModel) that `recipe` trains, by name.

    Raises:
        UsageError: `--targets` matches no linear or convolution layer, or one that LoRA files have no name for.
    """
    found = _matching(unet, recipe.target_pattern)
    if not found:
        raise no_match(recipe)
    placeless = sorted(set(found) - {module.name for module in sd15.modules().values()})
    if placeless:
        raise UsageError(f"--targets {recipe.targets!r} matches {placeless[0]} ({len(placeless)} such), which has no name in a "
                         "LoRA file: no host would find it")
    return found


def check_dora(unet: UNet, text_encoder: TextEncoder, recipe: Recipe, *, narrow: bool) -> None:
    """UsageError if hosts could not apply the DoRA that `recipe` asks for. narrow: `unet` is the narrow miniature's."""
    if recipe.dora:
        dora.check_columns(layers(unet, recipe), narrow=narrow)
    if recipe.dora and recipe.text_encoder:
        dora.check_columns(_matching(text_encoder, TEXT_TARGETS))


def attach(unet: UNet, recipe: Recipe) -> list[Factor]:
    """Put a fresh LoRA on `unet`; its factors by peft's names, float32, in order. Raises as `layers`."""
    return _attach(unet, layers(unet, recipe), recipe, generator_of(recipe.seed, Stream.FACTORS))


def attach_text_encoder(text_encoder: TextEncoder, recipe: Recipe) -> list[Factor]:
    """The same on all linear layers of `text_encoder` (transformers' CLIPTextModel), 6 a layer; names begin `TEXT_FACTORS`."""
    factors = _attach(text_encoder, _matching(text_encoder, TEXT_TARGETS), recipe,
                      generator_of(recipe.seed, Stream.TEXT_FACTORS))  # fmt: skip
    return [(TEXT_FACTORS + name, factor) for name, factor in factors]


def _matching(network: Model, pattern: str) -> dict[str, Layer]:
    """The linear and convolution layers whose names `pattern` matches whole."""
    return {name: module for name, module in network.named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and re.fullmatch(pattern, name)}


def _attach(network: Network, found: Mapping[str, Layer], recipe: Recipe, generator: torch.Generator) -> list[Factor]:
    from peft import LoraConfig

    kernels = {name: kernel_of(module.weight.shape) for name, module in found.items()}
    other = {re.escape(name): kernel for name, kernel in kernels.items()
             if (recipe.rank_of(kernel), recipe.alpha_of(kernel)) != (recipe.rank, recipe.true_alpha)}
    # the list, not the expression: peft would also try to wrap layers it does not support, and fail
    network.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.true_alpha, target_modules=list(found), lora_dropout=0.0,
                                   rank_pattern={name: recipe.rank_of(kernel) for name, kernel in other.items()},
                                   alpha_pattern={name: recipe.alpha_of(kernel) for name, kernel in other.items()},
                                   init_lora_weights="gaussian"), adapter_name=NAME)
    if recipe.dora:
        for name, layer in network.named_modules():
            if name in found:
                dora.decompose(layer)
    factors = factors_of(network)
    for name, factor in factors:
        factor.data = factor.data.float()
        factor.requires_grad_(True)
        if ".lora_A." in name:  # peft's Gaussian, std 1 / rank, from our own seed
            factor.data.copy_(torch.randn(factor.shape, generator=generator) / factor.shape[0])
    return factors


def factors_of(network: Network) -> list[Factor]:
    """Its LoRA's factors and DoRA's magnitudes by peft's names, in order."""
    return [(name, p) for name, p in network.named_parameters() if ".lora_" in name or name.endswith(f".{dora.PART}")]


def as_peft(factors: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Factors by the names that `attach` gives -> the tensors of a peft file with alpha, and `dora_scale` for a DoRA."""
    named = {"base_model.model." + name.replace(f".{NAME}.weight", ".weight"): factor.detach().cpu().contiguous()
             for name, factor in factors.items()}
    for name, factor in factors.items():
        module, _, part = name.partition(".lora_A.")
        if part:
            named[f"base_model.model.{module}.alpha"] = torch.tensor(recipe.alpha_of(kernel_of(factor.shape)))
    return named


def set_scale(unet: UNet, scale: float) -> None:
    """Set the scale of the adapter on `unet`: 0 is the base, 1 the full LoRA."""
    unet.set_adapters([NAME], [scale])


def set_text_scale(text_encoder: TextEncoder, scale: float) -> None:
    """The same on a text encoder; nothing if it has no adapter."""
    from peft.tuners.lora import LoraLayer

    for layer in text_encoder.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale(NAME, scale)


def has_adapter(network: Model | None) -> bool:
    return NAME in (getattr(network, "peft_config", None) or {})


def save(unet: UNet, folder: Path, text_encoder: TextEncoder | None = None) -> Path:
    """Write `folder`/pytorch_lora_weights.safetensors, diffusers' form, with alpha in its metadata; returns its path.

    text_encoder: its LoRA goes into the same file, if it has one.
    """
    with quiet():
        from diffusers import StableDiffusionPipeline
        from diffusers.training_utils import _collate_lora_metadata
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "pytorch_lora_weights.safetensors"
    networks = {name: network for name, network in (("unet", unet), ("text_encoder", text_encoder)) if has_adapter(network)}
    weights = {}
    for name, network in networks.items():
        spell = _diffusers_key if name == "unet" else str
        named = convert_state_dict_to_diffusers(get_peft_model_state_dict(network, adapter_name=NAME))
        # convolutions' may be channels_last
        weights[f"{name}_lora_layers"] = {spell(key): weight.contiguous() for key, weight in named.items()}
    try:
        with atomic_path(target) as temporary:
            StableDiffusionPipeline.save_lora_weights(folder, weight_name=temporary.name, **weights,
                                                      **_collate_lora_metadata(networks))
    except SafetensorError as error:
        raise JobError(f"{folder}: the LoRA cannot be written ({error}): free some disk space; the same "
                       "command then continues from the last checkpoint") from error
    return target


def save_dora(unet: UNet, recipe: Recipe, folder: Path, text_encoder: TextEncoder | None = None) -> Path:
    """Write a DoRA's factors and magnitudes into `folder`, in names that `convert` reads; returns the file's path."""
    from safetensors.torch import save

    factors = factors_of(unet)
    if has_adapter(text_encoder):
        assert text_encoder is not None
        factors += [(TEXT_FACTORS + name, factor) for name, factor in factors_of(text_encoder)]
    target = folder / "dora_weights.safetensors"
    with atomic_path(target) as temporary:
        temporary.write_bytes(save(as_peft(dict(factors), recipe)))
    return target


def _diffusers_key(key: str) -> str:
    """diffusers' name of a factor of the UNet. Its own function keeps peft's names for layers other than attention, and its
    loader expects all names in the form of the first, so it would drop the others without an error."""
    return key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def load_factors(factors: list[Factor], stored: dict[str, Tensor], source: Path) -> None:
    """Copy `stored` into the factors. JobError names what does not fit."""
    names = {name for name, _ in factors}
    if names != set(stored):
        strange = sorted(names ^ set(stored))
        raise JobError(f"{source}: its factors are not those of this run ({len(strange)} differ, first {strange[0]})")
    for name, factor in factors:
        if stored[name].shape != factor.shape:
            raise JobError(f"{source}: {name} is {list(stored[name].shape)}; expected {list(factor.shape)}")
    for name, factor in factors:
        factor.data.copy_(stored[name])
