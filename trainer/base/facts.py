"""What can be said of a base without reading its weights: where it is, its kind, its configuration, its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from convert.container import open_container
from convert.errors import JobError, UsageError
from convert.words import missing
from trainer.base import diffusers_folder, hub, prediction, single_file
from trainer.base.models import Config, Tokenizer
from trainer.base.sd15 import (
    NARROW_TEXT_CONFIG,
    NARROW_UNET_CONFIG,
    SCRIBBLE_NARROW,
    SD_V1,
    TEXT_CONFIG,
    UNET_CONFIG,
    family_of,
)
from trainer.base.tokenizers import clip_tokenizer, own_tokenizer
from trainer.base.vae_file import check_vae
from trainer.miniature.shipped import NETWORKS
from trainer.miniature.vocabulary import TOKENS
from trainer.recipe import MINIATURE, Recipe, home


@dataclass(frozen=True)
class BaseFacts:
    """Facts about a base that do not need its weights."""

    description: str
    read_tokenizer: Callable[[], Tokenizer]
    unet: Config
    """its UNet's configuration"""
    text: Config
    """its text encoder's"""

    @property
    def resolution(self) -> int:
        """Side in pixels of its usual pictures."""
        return 8 * (self.unet.get("sample_size") or 64)


def picture_side(recipe: Recipe) -> int:
    """Side in pixels of a training picture, without loading the base. Raises as `load_base` does."""
    return recipe.resolution or inspect_base(recipe).resolution


def is_miniature(name: str) -> bool:
    """Whether `--base name` is the embedded miniature, or a file of narrow networks like it."""
    path = home(name)
    return name == MINIATURE or path.is_file() and is_packed(path)


def inspect_base(recipe: Recipe) -> BaseFacts:
    """Describe `recipe.base` without reading its weights.

    Raises as `load_base` does.
    """
    path = local(recipe.base)
    if recipe.vae:
        check_vae(home(recipe.vae))
    if path is None:
        return BaseFacts("from the hub or its cache", lambda: packed_tokenizer(recipe), UNET_CONFIG, TEXT_CONFIG)
    if path.is_file() and is_packed(path):
        return BaseFacts(FAMILIES[SCRIBBLE_NARROW], lambda: packed_tokenizer(recipe), NARROW_UNET_CONFIG, NARROW_TEXT_CONFIG)
    if path.is_file():
        checkpoint = single_file.inspect(path, own_vae=not recipe.vae)
        configs, origin = checkpoint.configs, checkpoint.prediction_from
        read_tokenizer = partial(file_tokenizer, recipe, configs["text_encoder"])
    else:
        parts = diffusers_folder.inspect(path, half=False)
        configs, origin = parts.configs, scheduler_says(parts)
        read_tokenizer = partial(folder_tokenizer, recipe, parts)
    family, note = family_of(configs["unet"], recipe.base)
    _, told = prediction.with_flags(recipe, configs["scheduler"], origin, recipe.base)
    return BaseFacts(f"{note or FAMILIES[family]}; {told}" + (f"; VAE of {recipe.vae}" if recipe.vae else ""), read_tokenizer,
                     configs["unet"], configs["text_encoder"])


FAMILIES = {SD_V1: "Stable Diffusion 1.5", SCRIBBLE_NARROW: "the embedded miniature"}


def scheduler_says(parts: diffusers_folder.Parts) -> str:
    return "its scheduler's config" if parts.configs["scheduler"].get("prediction_type", "epsilon") != "epsilon" else ""


def packed_tokenizer(recipe: Recipe) -> Tokenizer:
    return clip_tokenizer(recipe.tokenizer, max_positions=77, vocabulary=TOKENS)


def is_packed(path: Path) -> bool:
    """Whether `path` is the narrow miniature's file. False for a pickle, which is refused later with its own message."""
    marks = {"text_encoder.rows", "text_encoder.tokens"}
    return path == NETWORKS or path.suffix == ".safetensors" and marks <= set(open_container(path).tensors)


def file_tokenizer(recipe: Recipe, text: Config) -> Tokenizer:
    return clip_tokenizer(recipe.tokenizer, max_positions=text["max_position_embeddings"], vocabulary=text["vocab_size"])


def folder_tokenizer(recipe: Recipe, parts: diffusers_folder.Parts) -> Tokenizer:
    text = parts.configs["text_encoder"]
    positions = text.get("max_position_embeddings", 77)
    if recipe.tokenizer or not parts.has_tokenizer:
        return clip_tokenizer(recipe.tokenizer, max_positions=positions, vocabulary=text.get("vocab_size", TOKENS))
    return own_tokenizer(parts.folder / "tokenizer", positions)


def local(name: str) -> Path | None:
    """The file or folder for `name`; None for a model on the hub."""
    path = NETWORKS if name == MINIATURE else home(name)
    if path.exists():
        return path
    if name == MINIATURE:
        raise JobError(f"{path}: the embedded model is missing from this installation: install the project again")
    if not hub.is_id(name):
        raise UsageError(f"--base {name}: {hub.advice(name) or missing(name)}")
    return None
