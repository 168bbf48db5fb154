"""Stable Diffusions with random weights and SD1.5's layout at several widths, and their number of operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from trainer.base.models import VAE, Config, Model, Scheduler, TextEncoder, UNet
from trainer.base.sd15 import SCHEDULER_CONFIG, TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG
from trainer.lora import adapter
from trainer.recipe import Recipe

M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Size:
    """A model's width as a divisor of SD1.5's, and the pictures it is timed on."""

    divisor: int
    groups: int
    """groups of the group norms: 32 do not divide a quarter of 320"""
    resolution: int


SIZES = {"sd15": Size(1, 32, 512), "quarter": Size(4, 16, 128), "tiny": Size(10, 8, 64)}


@dataclass
class Encoders:
    vae: VAE
    text_encoder: TextEncoder


def build_unet(size: Size, device: torch.device, dtype: torch.dtype) -> UNet:
    """In `dtype` on `device`, without gradients; the same weights on every call."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**unet_config(size))
    return _frozen(unet, dtype)


def build_encoders(size: Size, device: torch.device, dtype: torch.dtype) -> Encoders:
    """As `build_unet`."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    with device:
        vae = AutoencoderKL(**_public(VAE_CONFIG) | {
            "block_out_channels": [width // (4 if size.divisor > 1 else 1) for width in VAE_CONFIG["block_out_channels"]]})
        width = text_width(size)
        text_encoder = CLIPTextModel(CLIPTextConfig(**_public(TEXT_CONFIG) | {
            "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": max(width // 64, 1)}))
    return Encoders(_frozen(vae, dtype), _frozen(text_encoder, dtype))


def _frozen(model: M, dtype: torch.dtype) -> M:
    for parameter in model.parameters():  # `to` would warn about modules that some other models keep in float32
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def scheduler() -> Scheduler:
    from diffusers import DDPMScheduler

    return DDPMScheduler(**_public(SCHEDULER_CONFIG))


def unet_config(size: Size) -> Config:
    widths = [width // size.divisor for width in UNET_CONFIG["block_out_channels"]]
    return _public(UNET_CONFIG) | {"block_out_channels": widths, "norm_num_groups": size.groups,
                                   "cross_attention_dim": text_width(size), "sample_size": size.resolution // 8}


def text_width(size: Size) -> int:
    return int(TEXT_CONFIG["hidden_size"]) // (4 if size.divisor > 1 else 1)


def counted_flops(size: Size, resolution: int) -> float:
    """Operations, 2 per multiply-add, for one picture forward and backward if only the LoRA is trained.

    Counted by torch's own counter over products and convolutions, without computing them (device `meta`).
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(size)).requires_grad_(False)
        x, embedding = torch.empty(1, 4, resolution // 8, resolution // 8), torch.empty(1, 77, text_width(size))
    adapter.attach(unet, Recipe())
    unet.set_attn_processor(AttnProcessor())  # plain products, which the counter supports on every device
    with FlopCounterMode(display=False) as counter:
        unet(x, torch.empty(1, device="meta"), embedding).sample.sum().backward()
    return float(counter.get_total_flops())


def _public(config: Config) -> Config:
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "architectures"}
