"""Loads the base, the Stable Diffusion that is trained on, from any of its sources.

`--base` is `miniature`, a single .safetensors checkpoint, a diffusers folder, or the name of one on the hub.
"""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.errors import JobError, UsageError
from trainer.base import diffusers_folder, hub, prediction, single_file
from trainer.base.facts import file_tokenizer, folder_tokenizer, is_packed, local, packed_tokenizer, scheduler_says
from trainer.base.models import VAE, Config, Scheduler, TextEncoder, Tokenizer, UNet
from trainer.base.sd15 import SCHEDULER_CONFIG, SCRIBBLE_NARROW, family_of
from trainer.base.vae_file import load_vae
from trainer.recipe import Recipe, home
from trainer.terminal import quiet

if TYPE_CHECKING:  # importing this does not need torch
    import torch

Say = Callable[[str], None]


@dataclass
class Base:
    """A Stable Diffusion, its models on the CPU, in evaluation mode and without gradients."""

    name: str
    """as given by the user"""
    identity: str
    """digest of the weights; for a single file its sha256, which hosts show too"""
    family: str
    """`sd_v1`, `like_sd_v1` (its block layout at another width) or `scribble_narrow`, the miniature"""
    unet: UNet
    """diffusers' UNet2DConditionModel, in the requested dtype"""
    vae: VAE
    """diffusers' AutoencoderKL in float32; None once released"""
    text_encoder: TextEncoder
    """transformers' CLIPTextModel in float32; None once released"""
    tokenizer: Tokenizer
    """transformers' CLIPTokenizer, `model_max_length` at most 77 and the text encoder's positions"""
    scheduler: Scheduler
    """diffusers' DDPMScheduler: the base's betas and prediction type"""
    resolution: int
    """side in pixels of its usual pictures"""
    words: tuple[str, ...] = ()
    """the words it can draw; () without such a list. The narrow miniature has one"""
    clip_skip: int = 1
    """the text encoder's layer, counted from its end, whose output is used; later layers are removed"""

    def without_words(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts` without any word that it can draw; empty without a word list."""
        if not self.words:
            return []
        known = re.compile(r"\b(?:" + "|".join(re.escape(word) for word in self.words) + r")s?\b", re.IGNORECASE)
        return [prompt for prompt in dict.fromkeys(prompts) if not known.search(prompt)]

    def skip_layers(self, clip_skip: int) -> None:
        """Remove the text encoder's last `clip_skip` - 1 layers. Its output then equals that of hosts at this setting: the
        final norm of hidden_states[-clip_skip]. UsageError if it does not have that many layers."""
        layers = self.text_encoder.encoder.layers
        if clip_skip > len(layers):
            raise UsageError(f"--clip-skip {clip_skip}: the base's text encoder has {len(layers)} layers")
        self.text_encoder.encoder.layers = layers[: len(layers) - clip_skip + 1]
        self.text_encoder.config.num_hidden_layers = len(self.text_encoder.encoder.layers)
        self.clip_skip = clip_skip

    def release_encoders(self) -> None:
        """Free the VAE and the text encoder; their outputs are in the `EncodedSet`."""
        import torch

        self.vae = self.text_encoder = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_base(recipe: Recipe, *, dtype: torch.dtype, say: Say) -> Base:
    """Load `recipe.base`: the UNet in `dtype`, VAE and text encoder in float32 (they are small and run once).

    say: gets one-line notices.

    Raises:
        UsageError: `--base` does not exist or is not a Stable Diffusion 1.5; `--tokenizer` or `--vae` is another kind of file.
        JobError: a damaged or incomplete file; the hub cannot be reached.
    """
    path = local(recipe.base)
    if path is None:
        base = _from_hub(recipe, dtype, say)
    else:
        with quiet():
            base = _from_file(recipe, path, dtype, say) if path.is_file() else _from_folder(recipe, path, "", dtype, say)
    base.skip_layers(recipe.clip_skip)
    return base


def _from_file(recipe: Recipe, path: Path, dtype: torch.dtype, say: Say) -> Base:
    if is_packed(path):
        return _from_packed(recipe, path, dtype, say)
    checkpoint = single_file.inspect(path, own_vae=not recipe.vae)
    scheduler, told = prediction.with_flags(recipe, checkpoint.configs["scheduler"], checkpoint.prediction_from, recipe.base)
    checkpoint = replace(checkpoint, configs={**checkpoint.configs, "scheduler": scheduler})
    family = _family(checkpoint.configs["unet"], recipe.base, say)
    tokenizer = file_tokenizer(recipe, checkpoint.configs["text_encoder"])
    models = single_file.load(checkpoint, dtype) | {"tokenizer": tokenizer}
    return _assemble(recipe, *_with_vae(recipe, _digest(path), models), family, told, say)


def _from_packed(recipe: Recipe, path: Path, dtype: torch.dtype, say: Say) -> Base:
    """The narrow miniature, from its int8 file."""
    from diffusers import DDPMScheduler

    from trainer.miniature.packed import read_narrow

    narrow = read_narrow(path)
    models: dict[str, Any] = narrow.models()
    scheduler, told = prediction.with_flags(recipe, SCHEDULER_CONFIG, "", recipe.base)
    models |= {"unet": models["unet"].to(dtype), "tokenizer": packed_tokenizer(recipe),
               "scheduler": DDPMScheduler.from_config(scheduler), "words": narrow.words}
    return _assemble(recipe, *_with_vae(recipe, _digest(path), models), SCRIBBLE_NARROW, told, say)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_vae(recipe: Recipe, identity: str, models: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The models with the VAE of `--vae`, if one is given, and an identity that names both."""
    if not recipe.vae:
        return identity, models
    path = home(recipe.vae)
    return hashlib.sha256(f"{identity} VAE {_digest(path)}".encode()).hexdigest(), models | {"vae": load_vae(path)}


def _from_folder(recipe: Recipe, folder: Path, identity: str, dtype: torch.dtype, say: Say) -> Base:
    import torch

    parts = diffusers_folder.inspect(folder, half=dtype != torch.float32)
    family = _family(parts.configs["unet"], recipe.base, say)
    scheduler, told = prediction.with_flags(recipe, parts.configs["scheduler"], scheduler_says(parts), recipe.base)
    parts = replace(parts, configs={**parts.configs, "scheduler": scheduler})
    tokenizer = folder_tokenizer(recipe, parts)
    models = diffusers_folder.load(parts, dtype) | {"tokenizer": tokenizer}
    return _assemble(recipe, *_with_vae(recipe, identity or parts.fingerprint(), models), family, told, say)


def _from_hub(recipe: Recipe, dtype: torch.dtype, say: Say) -> Base:
    import torch

    folder, identity = fetch(recipe.base, half=dtype != torch.float32, say=say)
    with quiet():
        return _from_folder(recipe, folder, identity, dtype, say)


def fetch(name: str, *, half: bool, say: Say) -> tuple[Path, str]:
    """The folder and identity of the hub's model `name`, from the hub's cache or downloaded into it.

    half: its fp16 weights, if it has them. Raises as `load_base`.
    """
    def choose(names: list[str]) -> list[str]:
        return diffusers_folder.needed(name, names, half=half)

    try:
        folder, commit = hub.download(name, choose, say)
    except JobError as error:
        raise JobError(f"--base {error}; go online, or give --base a .safetensors file or diffusers folder of Stable "
                       "Diffusion 1.5 on this machine") from error
    except UsageError as error:
        raise UsageError(f"--base {error}") from error
    return folder, hashlib.sha256(f"{name}@{commit}, half {half}".encode()).hexdigest()


def _family(unet: Config, name: str, say: Say) -> str:
    family, note = family_of(unet, name)
    if note:
        say(f"{name}: {note}")
    return family


def _assemble(recipe: Recipe, identity: str, parts: dict[str, Any], family: str, told: str, say: Say) -> Base:
    name = recipe.base
    if "predicts v" in told or recipe.prediction != "base" or recipe.zero_snr:
        say(f"{name}: {told}")
    for part in ("unet", "vae", "text_encoder"):
        parts[part].eval().requires_grad_(False)
    unet, vae = parts["unet"], parts["vae"]
    width = parts["text_encoder"].config.hidden_size
    if width != unet.config.cross_attention_dim or vae.config.latent_channels != unet.config.in_channels:
        raise JobError(f"{name}: its parts do not fit together: the text encoder is {width} wide and the UNet reads "
                       f"{unet.config.cross_attention_dim}; the VAE has {vae.config.latent_channels} channels and the "
                       f"UNet reads {unet.config.in_channels}")
    side = (unet.config.sample_size or 64) * 2 ** (len(vae.config.block_out_channels) - 1)
    return Base(name=name, identity=identity, family=family, resolution=side, **parts)
