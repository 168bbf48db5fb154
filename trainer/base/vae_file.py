"""Loads a VAE from a separate file (`--vae`), for checkpoints without one, with LDM's or diffusers' names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from convert.container import open_container
from convert.errors import JobError, UsageError
from trainer.base import sd15
from trainer.base.models import VAE
from trainer.base.sd15 import VAE_CONFIG

if TYPE_CHECKING:  # inspecting a file does not need torch
    import torch

WANTED = "expected a VAE of Stable Diffusion 1.5, .safetensors"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""diffusers' names of attention projections before 0.18 -> current names."""


def check_vae(path: Path) -> None:
    """UsageError if the header of `path` is not that of a VAE with SD1.5's four latent channels."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        found = "is another kind of file" if path.exists() else "there is no such file"
        raise UsageError(f"--vae {path}: {found}; {WANTED}")
    tensors = open_container(path).tensors
    shapes = {name.removeprefix(sd15.VAE): tensor.shape for name, tensor in tensors.items()}
    quant = shapes.get("post_quant_conv.weight")
    if quant is None or "decoder.conv_in.weight" not in shapes:
        raise UsageError(f"--vae {path}: is not a VAE; {WANTED}")
    if quant[0] != 4:
        raise UsageError(f"--vae {path}: has {quant[0]} latent channels; {WANTED}, which has 4")


def load_vae(path: Path) -> VAE:
    """diffusers' AutoencoderKL in float32 on the CPU.

    Raises:
        JobError: a tensor is missing or has another shape.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    check_vae(path)
    tensors = {name.removeprefix(sd15.VAE): tensor.float() for name, tensor in load_file(path).items()}
    ldm = "encoder.down.0.block.0.conv1.weight" in tensors
    first = "encoder.down.{}.block.0.conv1.weight" if ldm else "encoder.down_blocks.{}.resnets.0.conv1.weight"
    try:
        config = VAE_CONFIG | {"block_out_channels": [tensors[first.format(level)].shape[0] for level in range(4)]}
        vae = AutoencoderKL.from_config(config)
        named = convert_ldm_vae_checkpoint({sd15.VAE + name: tensor for name, tensor in tensors.items()}, config) if ldm else {
            _today(name): tensor for name, tensor in tensors.items()}
        wanted = vae.state_dict()
        vae.load_state_dict({name: _shaped(named[name], tensor) for name, tensor in wanted.items()})
    except (KeyError, RuntimeError) as error:
        reason = f"lacks {error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise JobError(f"--vae {path}: {reason}: {WANTED}; get the file again") from error
    loaded: VAE = vae
    return loaded


def _today(name: str) -> str:
    return re.sub(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda m: _OLD_ATTENTION[m[0]], name)


def _shaped(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape the 1 x 1 convolutions of older attention layers to today's linear layers."""
    return tensor[..., 0, 0] if tensor.ndim == like.ndim + 2 and tensor.shape[2:] == (1, 1) else tensor
