"""A LoRA file of any form, read to be looked at: onto a base's UNet, its recipe and its name."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convert import Lora, convert_bytes, read
from convert.errors import JobError, UsageError
from trainer.base.load import Base
from trainer.base.sd15 import SCRIBBLE_NARROW, SD_V1
from trainer.lora.adapter import NAME
from trainer.miniature import adapters
from trainer.recipe import Recipe, flag
from trainer.terminal import quiet

PAPER_SCALE = 0.8


@dataclass(frozen=True)
class LoraFile:
    """A LoRA, read: what it says of itself, and its factors as bytes."""

    path: Path
    contents: Lora
    recipe: Recipe | None
    """of the run that made it, where this program was that"""
    diffusers: bytes = field(repr=False)
    """the same LoRA as a diffusers file"""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def recommended(self) -> float:
        """The scale its metadata recommends, else the paper's 0.8."""
        try:
            return float(self.contents.metadata["scribble_scale"])
        except (KeyError, ValueError):
            return PAPER_SCALE

    @property
    def trigger(self) -> str:
        return self.contents.metadata.get("modelspec.trigger_phrase", "")

    @property
    def digest(self) -> str:
        """sha256, hex, of the factors and their scales: not of names, form or metadata."""
        length = int.from_bytes(self.diffusers[:8], "little")
        header = json.loads(self.diffusers[8 : 8 + length])["__metadata__"]
        return hashlib.sha256((header["sshs_model_hash"] + header["lora_adapter_metadata"]).encode()).hexdigest()

    def attach(self, base: Base) -> None:
        """Put the factors, in float32, on `base.unet`.

        Raises:
            JobError: a module is not the base's, or the adapter is of a kind whose scale is no plain factor.
                Of a wide LoRA on the narrow miniature: it was trained on the wide one.
        """
        fitting = self._fitting(base)
        fitting._check(base)
        with quiet(), tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "lora.safetensors").write_bytes(fitting.diffusers)
            base.unet.load_lora_adapter(folder, weight_name="lora.safetensors", prefix="unet", adapter_name=NAME)
        for name, factor in base.unet.named_parameters():
            if ".lora_" in name:
                factor.data = factor.data.float()
                factor.requires_grad_(False)
        base.unet.eval()

    def _fitting(self, base: Base) -> LoraFile:
        """Itself, or on the narrow miniature what a LoRA of SD1.5's shape was widened from. Raises JobError."""
        if base.family != SCRIBBLE_NARROW or self.contents.base != SD_V1:
            return self
        narrow = adapters.narrowed(self.contents)
        return replace(self, contents=narrow, diffusers=adapters.lora_bytes(narrow, self.name, "diffusers"))

    def _check(self, base: Base) -> None:
        if self.contents.uses_dora:
            raise JobError(f"{self.path}: uses DoRA, whose strength is no plain factor: only plain LoRAs are measured here")
        layers = dict(base.unet.named_modules())
        for name, module in self.contents.modules.items():
            if module.module.scope != "unet":
                raise JobError(f"{self.path}: also patches the text encoder ({name}): only LoRAs of the UNet are measured here")
            weight = getattr(layers.get(module.module.name), "weight", None)
            if weight is None or tuple(weight.shape) != tuple(module.shape):
                has = f"is {list(weight.shape)} there" if weight is not None else "is not there"
                raise JobError(f"{self.path}: does not fit the base {base.name}: {module.module.name} {has}, and the LoRA "
                               f"(for {self.contents.base}) patches one of {list(module.shape)}: give --base the model it "
                               "was trained on")


def trained_by(lora: LoraFile, changed: dict[str, Any], *, needed: Sequence[str]) -> Recipe:
    """The recipe that says base and data: the LoRA's own with `changed` fields.

    Raises:
        UsageError: the LoRA has none, and a `needed` field is not among the changed ones.
    """
    lacking = [flag(name) for name in needed if lora.recipe is None and name not in changed]
    if lacking:
        raise UsageError(f"{lora.path}: was not made by this program, so its metadata does not say what it was trained on: "
                         f"give {' and '.join(lacking)}")
    return replace(lora.recipe or Recipe(), **changed)


def read_lora(path: Path) -> LoraFile:
    """Read the header of `path`, a .safetensors file or peft folder. JobError where it is missing or no LoRA of SD1.5."""
    if not path.exists():
        raise JobError(f"{path}: there is no such file: give a LoRA, .safetensors")
    contents = read(path)
    return LoraFile(path, contents, _recipe(contents), convert_bytes(path, to="diffusers"))


def _recipe(contents: Lora) -> Recipe | None:
    """The recipe in the metadata; None where there is none, JobError where another version wrote it."""
    text = contents.metadata.get("scribble_recipe")
    if text is None:
        return None
    try:
        stored: dict[str, Any] = json.loads(text)
        return Recipe(**stored)
    except (ValueError, TypeError) as error:
        raise JobError(f"{contents.path}: its scribble_recipe cannot be read ({error}): it was written by another version"
                       ) from error
