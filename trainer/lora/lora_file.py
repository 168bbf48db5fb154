"""A LoRA file of any form: its recipe and name, and attaching it to a base for sampling."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from convert import Lora, convert_bytes, keys, read
from convert.errors import JobError, UsageError
from convert.files import json_file
from convert.names import parse
from convert.sd15 import TEXT_ENCODER
from trainer.base.load import Base
from trainer.base.sd15 import SCRIBBLE_NARROW, SD_V1
from trainer.data.ours import RECIPE
from trainer.lora import dora
from trainer.lora.adapter import NAME, TEXT_FACTORS, Factor
from trainer.miniature import adapters
from trainer.recipe import Fields, Recipe, flag
from trainer.terminal import quiet

PAPER_SCALE = 0.8
COLUMNS = "columns"
"""`convert`'s name for a DoRA with norms of input columns"""
_LETTERS = {"down": "lora_A", "up": "lora_B"}
"""peft's names of the factors"""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file that was read: its header, and its factors as bytes."""

    path: Path
    contents: Lora
    recipe: Recipe | None
    """of the run that made it; None if another program made it"""
    diffusers: bytes = field(repr=False)
    """the same LoRA as a diffusers file, without a DoRA's magnitudes of input columns, which that form cannot hold"""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def recommended(self) -> float:
        """The scale its metadata recommends, else the paper's 0.8."""
        try:
            return float(self.contents.metadata[keys.SCALE])
        except (KeyError, ValueError):
            return PAPER_SCALE

    @property
    def trigger(self) -> str:
        return self.contents.metadata.get(keys.TRIGGER, "")

    @property
    def digest(self) -> str:
        """sha256, hex, of the factors and their scales: not of names, form or metadata."""
        length = int.from_bytes(self.diffusers[:8], "little")
        header = json.loads(self.diffusers[8 : 8 + length])["__metadata__"]
        magnitudes = b"".join(module.parts[dora.PART].read() for module in self.contents.modules.values()
                              if module.dora == COLUMNS)  # fmt: skip
        return hashlib.sha256((header[keys.MODEL_HASH] + header["lora_adapter_metadata"]).encode() + magnitudes).hexdigest()

    def factors(self) -> dict[str, Tensor]:
        """The factors in float32 by the names that `adapter.attach` and `adapter.attach_text_encoder` give them."""
        from safetensors.torch import load

        found = {}
        for name, tensor in load(self.diffusers).items():
            key = parse(name)
            assert key is not None
            module = key.module.name.removeprefix("text_model.")
            prefix = TEXT_FACTORS if key.module.scope == TEXT_ENCODER else ""
            found[f"{prefix}{module}.{_LETTERS[key.part]}.{NAME}.weight"] = tensor.float()
        return found

    def attach(self, base: Base) -> None:
        """Put the factors, in float32, on `base.unet` and, if there are any for it, `base.text_encoder`.

        Raises:
            JobError: a module does not fit the base, or the adapter is of a kind whose scale is not a plain factor; or `base`
                is the narrow miniature and the LoRA was trained on the wide one.
        """
        fitting = self.fitting(base)
        fitting._check(base)
        with quiet(), tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "lora.safetensors").write_bytes(fitting.diffusers)
            base.unet.load_lora_adapter(folder, weight_name="lora.safetensors", prefix="unet", adapter_name=NAME)
        for name, factor in base.unet.named_parameters():
            if ".lora_" in name:
                factor.data = factor.data.float()
                factor.requires_grad_(False)
        base.unet.eval()
        fitting._attach_text(base)
        fitting._decompose(base)

    def _decompose(self, base: Base) -> None:
        """Make those attached layers DoRAs that have magnitudes in the file."""
        from safetensors.torch import load

        if not self.contents.uses_dora:
            return
        layers = dict(base.unet.named_modules())
        layers |= {f"text_model.{name}": layer for name, layer in base.text_encoder.named_modules()}
        for name, tensor in load(adapters.lora_bytes(self.contents, self.name)).items():
            key = parse(name)
            assert key is not None
            if key.part == dora.PART and (layer := layers.get(key.module.name)) is not None:
                dora.decompose(layer, tensor)
                layer.get_parameter(dora.PART).requires_grad_(False)

    def _attach_text(self, base: Base) -> None:
        from peft import LoraConfig

        there = dict(base.text_encoder.named_modules())
        modules = {name: module for module in self.contents.in_scope(TEXT_ENCODER)
                   if (name := module.module.name.removeprefix("text_model.")) in there}
        if not modules:
            return
        base.text_encoder.add_adapter(
            LoraConfig(r=1, lora_alpha=1, target_modules=list(modules),
                       rank_pattern={re.escape(name): module.rank for name, module in modules.items()},
                       alpha_pattern={re.escape(name): module.alpha for name, module in modules.items()}), adapter_name=NAME)
        factors = self.factors()
        for name, factor in base.text_encoder.named_parameters():
            if ".lora_" in name:
                factor.data = factors[TEXT_FACTORS + name]
                factor.requires_grad_(False)
        base.text_encoder.eval()

    def fitting(self, base: Base) -> LoraFile:
        """Itself, or for the narrow miniature the narrow LoRA that this one was widened from. Raises JobError."""
        if base.family != SCRIBBLE_NARROW or self.contents.base != SD_V1:
            return self
        narrow = adapters.narrowed(self.contents)
        return replace(self, contents=narrow, diffusers=adapters.lora_bytes(_plain(narrow), self.name, "diffusers"))

    def _check(self, base: Base) -> None:
        if any(module.dora not in (None, COLUMNS) for module in self.contents.modules.values()):
            raise JobError(f"{self.path}: is a DoRA with norms of output rows, which no web UI applies as it was trained: "
                           "expected a plain LoRA or a DoRA with norms of input columns")
        layers = dict(base.unet.named_modules())
        layers |= {f"text_model.{name}": module for name, module in base.text_encoder.named_modules()}
        for module in self.contents.modules.values():
            if module.module.scope == TEXT_ENCODER and base.clip_skip > 1 and module.module.name not in layers:
                continue  # clip skip leaves this layer out
            weight = getattr(layers.get(module.module.name), "weight", None)
            if weight is None or tuple(weight.shape) != tuple(module.shape):
                has = f"is {list(weight.shape)} there" if weight is not None else "is not there"
                raise JobError(f"{self.path}: does not fit the base {base.name}: {module.module.name} {has}, and the LoRA "
                               f"(for {self.contents.base}) patches one of {list(module.shape)}: give --base the model it "
                               "was trained on")


def start_from(factors: Sequence[Factor], lora: LoraFile) -> None:
    """Copy the factors of `lora` into `factors`. Text-encoder factors that `lora` lacks keep their values.

    Raises:
        JobError: the UNet's layers differ, or a factor has another shape.
    """
    stored = lora.factors()
    names = dict(factors)
    lacking = sorted({name for name in names if not name.startswith(TEXT_FACTORS)} ^ {
        name for name in stored if not name.startswith(TEXT_FACTORS)}) + sorted(stored.keys() - names.keys())
    wrong = [name for name, factor in stored.items() if name in names and factor.shape != names[name].shape]
    if lacking or wrong:
        raise JobError(f"--init {lora.path}: {[*lacking, *wrong][0]} does not fit this base: give --base the model that it was "
                       "trained on")
    for name, factor in stored.items():
        names[name].data.copy_(factor)


def trained_by(lora: LoraFile, changed: Fields, *, needed: Sequence[str]) -> Recipe:
    """The LoRA's own recipe with the `changed` fields: it names base and data.

    Raises:
        UsageError: the LoRA has no recipe, and a `needed` field is not among the changed ones.
    """
    lacking = [flag(name) for name in needed if lora.recipe is None and name not in changed]
    if lacking:
        raise UsageError(f"{lora.path}: was not made by this program, so its metadata does not name what it was trained on: "
                         f"give {' and '.join(lacking)}")
    return replace(lora.recipe or Recipe(), **changed)


def read_lora(path: Path) -> LoraFile:
    """Read the header of `path`, a .safetensors file or peft folder. JobError if it is missing or no LoRA of SD1.5."""
    if not path.exists():
        raise JobError(f"{path}: there is no such file: give a LoRA, .safetensors")
    contents = read(path)
    factors = (adapters.lora_bytes(_plain(contents), path.stem, "diffusers") if contents.uses_dora
               else convert_bytes(path, to="diffusers"))
    return LoraFile(path, contents, _with_paths(path, _recipe(contents)), factors)


def _plain(contents: Lora) -> Lora:
    """`contents` without the magnitudes of a DoRA's input columns."""
    modules = {name: replace(module, parts={part: tensor for part, tensor in module.parts.items() if part != dora.PART})
               if module.dora == COLUMNS else module for name, module in contents.modules.items()}
    return replace(contents, modules=modules)


def _with_paths(path: Path, recipe: Recipe | None) -> Recipe | None:
    """`recipe` with full paths, which a LoRA does not carry, if the folder of its run is in one of the usual places."""
    for run in (path.parent / "run", path.parent / "runs" / path.stem, Path("runs") / path.stem):
        try:
            whole = Recipe(**json_file.read_object(run / RECIPE)["recipe"])
        except (OSError, KeyError, TypeError, JobError, UsageError):
            continue  # no run, or not the one that made this LoRA
        if recipe and whole.published() == recipe.as_dict():
            return whole
    return recipe


def _recipe(contents: Lora) -> Recipe | None:
    """The recipe in the metadata; None if there is none, JobError if another version wrote it."""
    text = contents.metadata.get(keys.RECIPE)
    if text is None:
        return None
    try:
        stored = json_file.parse(text)
        return Recipe(**stored)
    except (ValueError, TypeError) as error:
        raise JobError(f"{contents.path}: its scribble_recipe cannot be read ({error}): it was written by another version"
                       ) from error
