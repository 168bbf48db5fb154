"""Loads a single-file checkpoint (LDM names, .safetensors) as diffusers' models, without the hub.

The header is enough to check that it is a Stable Diffusion 1.5, so gigabytes are read only for a suitable file.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert import keys
from convert.container import open_container
from convert.errors import JobError, UsageError, quote
from convert.tensors import Container
from trainer.base import prediction
from trainer.base.models import Config
from trainer.base.sd15 import TEXT, UNET, UNET_CONFIG, VAE, configs

if TYPE_CHECKING:  # inspecting a file does not need torch
    import torch

FLOATS = {"F32", "F16", "BF16", "F64"}
WANTED = "expected a Stable Diffusion 1.5 checkpoint"

_OLD_TEXT = TEXT + "embeddings."  # in checkpoints saved with an early transformers, without `text_model.`


@dataclass(frozen=True)
class Checkpoint:
    """A file whose header is that of a complete Stable Diffusion 1.5."""

    path: Path
    names: Mapping[str, str]  # LDM name -> name in the file
    configs: Mapping[str, Config]  # of diffusers' folders unet, vae, text_encoder, scheduler
    prediction_from: str = ""
    """source of the prediction type; "" if it was not found"""
    has_vae: bool = True


def inspect(path: Path, *, own_vae: bool = True) -> Checkpoint:
    """Read and check the header of `path`. own_vae: its VAE is needed; False if another one is given.

    Raises:
        UsageError: it is something else (a LoRA, SDXL, an inpainting model, a VAE, …); the message says what, and the remedy.
        JobError: it is damaged, or lacks a part or tensor.
    """
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise UsageError(f"--base {path}: is a PyTorch pickle, which can run code when loaded: give the .safetensors "
                         "form of this model (most models have one on the same page)")
    container = open_container(path)
    names = _ldm_names(container)
    shapes = {name: container.tensors[there].shape for name, there in names.items()}
    try:
        _refuse_others(path, shapes)
        _refuse_parts(path, shapes, own_vae)
        _refuse_dtypes(container, names)
        has_vae = own_vae or any(name.startswith(VAE) for name in shapes)
        written_down = configs(shapes, with_vae=has_vae)
    except KeyError as error:
        raise JobError(f"{path}: lacks {quote(str(error.args[0]))}: {WANTED}; get the file again") from error
    except (IndexError, ValueError) as error:
        raise JobError(f"{path}: a tensor has too few dimensions: {WANTED}; get the file again") from error
    scheduler, origin = prediction.of_file(path, container.metadata, written_down["scheduler"], "v_pred" in shapes)
    unet = written_down["unet"] | {"sample_size": _sample_size(container.metadata)}
    return Checkpoint(path, names, {**written_down, "unet": unet, "scheduler": scheduler}, origin, has_vae)


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """The checkpoint's models on the CPU: `unet` in `dtype`, `vae` (None if it has none) and `text_encoder` in float32, and
    `scheduler`.

    diffusers' own conversion renames the tensors. Raises JobError for a missing or wrongly shaped tensor, before reading any.
    """
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel

    _verify(checkpoint)
    with tempfile.TemporaryDirectory() as folder:  # diffusers takes a configuration only as a folder or from the hub
        for name, config in checkpoint.configs.items():
            place = Path(folder) / name
            place.mkdir()
            (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        local = {"config": folder, "local_files_only": True}
        unet = UNet2DConditionModel.from_single_file(
            _read(checkpoint, UNET), subfolder="unet", torch_dtype=dtype, **local)
        vae = AutoencoderKL.from_single_file(
            _read(checkpoint, VAE), subfolder="vae", torch_dtype=torch.float32, **local) if checkpoint.has_vae else None
        text = create_diffusers_clip_model_from_ldm(
            CLIPTextModel, _read(checkpoint, TEXT), subfolder="text_encoder", torch_dtype=torch.float32, **local)
    scheduler = DDPMScheduler.from_config(dict(checkpoint.configs["scheduler"]))
    return {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": scheduler}


def _sample_size(metadata: Mapping[str, str]) -> int:
    """Side of its usual pictures' latents: 64 as in SD1.5, or less if the header names smaller pictures ("128x128").

    Larger ones do not count: whoever wants 768 pixels, and has the memory for them, gives `--resolution`.
    """
    said = re.fullmatch(r"(\d+)x(\d+)", metadata.get(keys.RESOLUTION, ""))
    usual: int = UNET_CONFIG["sample_size"]
    side = min(int(said[1]), int(said[2])) // 8 if said else usual
    return side if 8 <= side < usual else usual


def _ldm_names(container: Container) -> dict[str, str]:
    """LDM name -> name in the file; early checkpoints lack `text_model.` in the text encoder's names."""
    if not any(name.startswith(_OLD_TEXT) for name in container.tensors):
        return {name: name for name in container.tensors}
    return {name.replace(TEXT, TEXT + "text_model.", 1): name for name in container.tensors}


def _refuse_others(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    def refuse(what: str) -> None:
        raise UsageError(f"--base {path}: is {what}; {WANTED}")

    def named(*pieces: str) -> bool:
        return any(piece in name for name in shapes for piece in pieces)

    if named("lora_unet_", "lora_te", ".lora_A.", ".lora.down.", ".lora_down.", ".lora.up.", "lokr_", "hada_w"):
        refuse("a LoRA, not a base")
    if any(name.startswith("conditioner.embedders.") for name in shapes):
        refuse("SDXL")
    if named("cond_stage_model.model."):
        refuse("Stable Diffusion 2")
    if any(name.startswith(("control_model.", "input_hint_block.", "controlnet_")) for name in shapes):
        refuse("a ControlNet")
    if named("double_blocks.", "joint_blocks.", "transformer_blocks.0.attn.add_q_proj", "double_layers."):
        refuse("a transformer model (Flux, Stable Diffusion 3 or a relative)")
    if "emb_params" in shapes or any(name.startswith("string_to_param") for name in shapes):
        refuse("a textual-inversion embedding")
    context = shapes.get(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[-1]
    if context == 1024:
        refuse("Stable Diffusion 2")
    channels = shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 4, 3, 3))[1]
    if channels == 9:
        refuse("an inpainting model (9 input channels)")
    if channels != 4:
        refuse(f"a model with {channels} input channels (instruct-pix2pix has 8)" if channels != 0 else "broken")


def _refuse_parts(path: Path, shapes: Mapping[str, tuple[int, ...]], own_vae: bool) -> None:
    needed = (UNET, VAE, TEXT) if own_vae else (UNET, TEXT)
    has = {prefix: any(name.startswith(prefix) for name in shapes) for prefix in needed}
    if all(has.values()):
        return
    alone = ("down_blocks.", "encoder.", "text_model.", "decoder.", "diffusion_model.")
    if any(name.startswith(alone) for name in shapes):
        raise UsageError(f"--base {path}: is one part of a model (a UNet, VAE or text encoder alone); {WANTED}, or the "
                         "diffusers folder that contains this part")
    if not any(has.values()):
        example = quote(next(iter(shapes), "missing"))
        raise UsageError(f"--base {path}: is not a Stable Diffusion checkpoint (its first tensor is {example}); {WANTED}")
    titles = {UNET: "UNet", VAE: "VAE", TEXT: "text encoder"}
    lacking = " and no ".join(titles[prefix] for prefix, there in has.items() if not there)
    vae = ", or a VAE with --vae" if not has.get(VAE, True) else ""
    raise UsageError(f"--base {path}: has no {lacking}: give the full checkpoint of this model, or its diffusers "
                     f"folder{vae}")


def _refuse_dtypes(container: Container, names: Mapping[str, str]) -> None:
    for name, there in names.items():
        tensor = container.tensors[there]
        if name.startswith((UNET, VAE, TEXT)) and tensor.dtype not in FLOATS and not name.endswith("position_ids"):
            raise UsageError(f"--base {container.path}: {quote(there)} is {quote(tensor.dtype)}: expected a checkpoint in "
                             "fp32, fp16 or bf16, not a quantized one")


def _verify(checkpoint: Checkpoint) -> None:
    """Run diffusers' conversion on meta tensors and compare the shapes with the models' own. Raises JobError."""
    import torch

    container = open_container(checkpoint.path)
    for prefix, (model, convert) in _converters(checkpoint).items():
        if prefix == VAE and not checkpoint.has_vae:
            continue
        part = prefix.rstrip(".")
        empty = {name: torch.empty(container.tensors[there].shape, device="meta")
                 for name, there in checkpoint.names.items() if name.startswith(prefix)}  # fmt: skip
        found = {name: tuple(tensor.shape) for name, tensor in convert(empty).items()}
        for name, tensor in model.state_dict().items():
            if name not in found:
                raise JobError(f"{checkpoint.path}: lacks a tensor of its {part}: {name} (diffusers' name): get the "
                               "file again")
            if found[name] != tuple(tensor.shape):
                raise JobError(f"{checkpoint.path}: {name} (diffusers' name) in its {part} has shape {found[name]}, "
                               f"expected {tuple(tensor.shape)}; {WANTED}")


def _converters(checkpoint: Checkpoint) -> dict[str, tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]]:
    """For each part's prefix, a model on the meta device and the conversion of its names."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as ldm
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {name: dict(values) for name, values in checkpoint.configs.items()}
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(config["unet"]), AutoencoderKL.from_config(config["vae"])
        text = CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
    prefix = "" if hasattr(text, "text_model") else "text_model."  # transformers 5.6 dropped it
    return {
        UNET: (unet, lambda tensors: ldm.convert_ldm_unet_checkpoint(tensors, config["unet"])),
        VAE: (vae, lambda tensors: ldm.convert_ldm_vae_checkpoint(tensors, config["vae"])),
        TEXT: (text, lambda tensors: {name.removeprefix(prefix): tensor
                                      for name, tensor in ldm.convert_ldm_clip_checkpoint(tensors).items()}),
    }  # fmt: skip


def _read(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one part by LDM name."""
    from safetensors import safe_open

    with safe_open(checkpoint.path, "pt") as file:
        return {name: file.get_tensor(there) for name, there in checkpoint.names.items() if name.startswith(prefix)}
