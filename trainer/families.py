"""Which Stable Diffusion a UNet belongs to, told by its configuration, and the refusal of those that are not ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.errors import UsageError
from trainer.sd15_configs import CONTEXT, UNET_LAYOUT, UNET_WIDTHS

SD_V1, SD_V1_LIKE, SCRIBBLE_MINIATURE = "sd_v1", "like_sd_v1", "scribble_miniature"
MINIATURE_CONTEXT, MINIATURE_LATENT = 96, 16

WANTED = "a Stable Diffusion 1.5 was expected"


def family_of(unet: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The family of a UNet's configuration and a one-line note for the user, or "".

    Raises UsageError, which names what it is instead, for a UNet without SD1.5's block layout.
    """
    context, channels = unet.get("cross_attention_dim"), unet.get("in_channels", 4)
    if unet.get("addition_embed_type") or context == 2048:
        raise UsageError(f"--base {name}: is SDXL; {WANTED}")
    if context == 1024:
        raise UsageError(f"--base {name}: is Stable Diffusion 2 (its prompt embedding is 1024 wide); {WANTED}")
    if channels == 9:
        raise UsageError(f"--base {name}: is an inpainting model (9 input channels); {WANTED}")
    if channels != 4:
        raise UsageError(f"--base {name}: has {channels} input channels (instruct-pix2pix has 8); {WANTED}")
    if any(_plain(unet.get(key, value)) != value for key, value in UNET_LAYOUT.items()) or not isinstance(context, int):
        raise UsageError(f"--base {name}: has not Stable Diffusion 1.5's blocks, so hosts could not place its LoRA; "
                         f"{WANTED}")
    if context == MINIATURE_CONTEXT and unet.get("sample_size") == MINIATURE_LATENT:
        return SCRIBBLE_MINIATURE, ""
    widths = _plain(unet.get("block_out_channels", UNET_WIDTHS))
    if context == CONTEXT and widths == UNET_WIDTHS:
        return SD_V1, ""
    return SD_V1_LIKE, (f"has Stable Diffusion 1.5's blocks at other widths ({', '.join(map(str, widths))}; prompt "
                        f"embedding {context}): its LoRA fits this base only")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
