"""Chooses, checks and loads the files of a Stable Diffusion in diffusers' folder layout, without the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.container import open_container
from convert.errors import JobError, UsageError
from convert.files.json_file import read_object
from trainer.base.models import Config

if TYPE_CHECKING:  # inspecting a folder does not need torch
    import torch

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Folder of a part -> the stem of its weights' file names."""
OTHER_PIPELINES = {"StableDiffusionXL": "SDXL", "Inpaint": "an inpainting model", "StableDiffusion3": "Stable Diffusion 3",
                   "Flux": "Flux", "InstructPix2Pix": "instruct-pix2pix", "Upscale": "an upscaler",
                   "Depth2Img": "a depth model", "PixArt": "PixArt",
                   "Cascade": "Stable Cascade", "Kandinsky": "Kandinsky"}  # fmt: skip
"""Part of a pipeline's name in model_index.json -> the kind of model."""
SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Parts:
    """The parts of a folder that are used."""

    folder: Path
    files: list[str]  # relative to the folder, with forward slashes
    configs: dict[str, Config]  # of unet, vae, text_encoder

    @property
    def has_tokenizer(self) -> bool:
        return any(name.startswith("tokenizer/") for name in self.files)

    def fingerprint(self) -> str:
        """sha256 of all files used, names and contents."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            with open(self.folder / name, "rb") as file:
                digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()


def needed(name: str, names: list[str], *, half: bool) -> list[str]:
    """The files of a model that training needs, out of all `names`: no safety checker, no second precision, no pickles.

    half: prefer fp16 weights if there are both. Raises UsageError if a part is missing or only available as a pickle.
    """
    if any(n.startswith("transformer/") for n in names):
        raise UsageError(f"--base {name}: is a transformer model (Flux, Stable Diffusion 3 or a relative); expected Stable "
                         "Diffusion 1.5")
    chosen = [n for n in names if n.startswith("tokenizer/") and n.count("/") == 1]
    for part in STEMS:
        if f"{part}/config.json" not in names:
            files = any(n.endswith(".safetensors") for n in names)
            alone = " (give a single checkpoint by its own path)" if files else ""
            raise UsageError(f"--base {name}: has no {part}/config.json: expected a diffusers model, with unet, "
                             f"vae, text_encoder, tokenizer and scheduler{alone}")
        chosen += [f"{part}/config.json", *_weights(name, part, names, half)]
    if SCHEDULER not in names:
        raise UsageError(f"--base {name}: has no {SCHEDULER}: expected a diffusers model")
    return [*chosen, SCHEDULER]


def _weights(name: str, part: str, names: list[str], half: bool) -> list[str]:
    """The weights of one part, in one file or in several with their index."""
    stem = f"{part}/{STEMS[part]}"
    for variant in (".fp16", "") if half else ("", ".fp16"):
        if (whole := f"{stem}{variant}.safetensors") in names:
            return [whole]
        if (index := f"{stem}.safetensors.index{variant}.json") in names:
            return [index, *(n for n in names if n.startswith(f"{stem}{variant}-0") and n.endswith(".safetensors"))]
    there = " (only a pickle, which can run code when loaded)" if f"{stem}.bin" in names else ""
    raise UsageError(f"--base {name}: has no {stem}.safetensors{there}: get the model's .safetensors form")


def inspect(folder: Path, *, half: bool) -> Parts:
    """Choose the files and read configurations and headers. Raises UsageError as `needed` does, JobError for damaged files."""
    _refuse_pipelines(folder)
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.glob("*/*")) if file.is_file()]
    files = needed(str(folder), names, half=half)
    configs = {}
    for file in files:
        if file.endswith(".safetensors"):
            open_container(folder / file)
    for part in (*STEMS, "scheduler"):
        path = folder / (SCHEDULER if part == "scheduler" else f"{part}/config.json")
        try:
            configs[part] = read_object(path)
        except (OSError, JobError) as error:
            why = str(error).removeprefix(f"{path}: ")
            raise JobError(f"{path}: cannot be read as JSON ({why}): get it again") from error
    return Parts(folder, files, configs)


def _refuse_pipelines(folder: Path) -> None:
    """UsageError if the folder's model_index.json names a pipeline of another kind."""
    index = folder / "model_index.json"
    try:
        name = str(read_object(index).get("_class_name", "")) if index.is_file() else ""
    except (OSError, JobError):
        return  # model_index.json is not needed to load the parts
    for piece, kind in OTHER_PIPELINES.items():
        if piece in name:
            raise UsageError(f"--base {folder}: is {kind} ({name}); expected Stable Diffusion 1.5")


def load(parts: Parts, dtype: torch.dtype) -> dict[str, Any]:
    """The models on the CPU: `unet` in `dtype`, `vae` and `text_encoder` in float32, and `scheduler`.

    Raises JobError if weights and configuration do not fit together.
    """
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    models = {}
    for part, model_class in classes.items():
        variant = "fp16" if any(f.startswith(f"{part}/") and ".fp16" in f for f in parts.files) else None
        place = parts.folder / part
        try:
            model, report = model_class.from_pretrained(
                place, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True,
                torch_dtype=dtype if part == "unet" else torch.float32)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise JobError(f"{place}: cannot be loaded: {_one_line(error)}") from error
        if lacking := sorted(report["missing_keys"]):
            raise JobError(f"{place}: its weights lack {lacking[0]} (and {len(lacking) - 1} more): get them again")
        models[part] = model
    return models | {"scheduler": DDPMScheduler.from_config(parts.configs["scheduler"])}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
