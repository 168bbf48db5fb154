"""The architecture of Stable Diffusion 1.5, which single-file checkpoints do not include.

Sources of the numbers: `unet/config.json`, `vae/config.json`, `text_encoder/config.json` and
`scheduler/scheduler_config.json` of the model's diffusers repository. Widths are read from the checkpoint's own shapes,
so a narrower model of the same layout loads too; any other difference shows as a missing tensor or a wrong shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from convert.errors import UsageError
from trainer.miniature import narrow

if TYPE_CHECKING:  # it imports torch, which --help does not need
    from trainer.base.models import Config

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a checkpoint's tensors by LDM name."""

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
"""Prefixes of the three parts' names in an LDM checkpoint."""

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

UNET_LAYOUT: Config = {
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
    "layers_per_block": 2,
}
"""The layout that gives the UNet its 16 transformer blocks and their names, at any width."""

UNET_WIDTHS = [320, 640, 1280, 1280]
CONTEXT = 768
"""Width of SD1.5's prompt embedding."""

UNET_CONFIG: Config = {
    "_class_name": "UNet2DConditionModel", **UNET_LAYOUT, "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": UNET_WIDTHS, "center_input_sample": False, "cross_attention_dim": CONTEXT,
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
}  # fmt: skip

VAE_CONFIG: Config = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "in_channels": 3,
    "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 512,
    "scaling_factor": 0.18215,
}  # fmt: skip

TEXT_CONFIG: Config = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 2, "pad_token_id": 1, "hidden_act": "quick_gelu", "hidden_size": CONTEXT, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
    "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip

SCHEDULER_CONFIG: Config = {
    "_class_name": "DDPMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 1,
}  # fmt: skip


def configs(shapes: Shapes, *, with_vae: bool = True) -> dict[str, Config]:
    """The four configurations for a checkpoint with these shapes, by diffusers folder name; without a VAE, SD1.5's own.

    Raises KeyError for a tensor of SD1.5 that `shapes` lacks.
    """
    blocks = [shapes[f"{UNET}input_blocks.{i}.0.out_layers.3.weight"][0] for i in (1, 4, 7, 10)]
    context = shapes[f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"][1]
    encoder = [shapes[f"{VAE}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(4)] if with_vae else VAE_CONFIG[
        "block_out_channels"]
    # LDM checkpoints do not store the prediction type; fine-tunes mark v-prediction with an empty tensor of this name
    v = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in shapes} if "v_pred" in shapes else {}
    return {
        "unet": UNET_CONFIG | {"block_out_channels": blocks, "cross_attention_dim": context},
        "vae": VAE_CONFIG | {"block_out_channels": encoder},
        "text_encoder": TEXT_CONFIG | _text_widths(shapes),
        "scheduler": SCHEDULER_CONFIG | v,
    }


def _text_widths(shapes: Shapes) -> dict[str, int]:
    text = f"{TEXT}text_model."
    positions, width = shapes[f"{text}embeddings.position_embedding.weight"]
    layers = sum(name.startswith(f"{text}encoder.layers.") and name.endswith(".mlp.fc1.weight") for name in shapes)
    return {
        "hidden_size": width, "max_position_embeddings": positions, "num_hidden_layers": layers,
        "vocab_size": shapes[f"{text}embeddings.token_embedding.weight"][0],
        "intermediate_size": shapes[f"{text}encoder.layers.0.mlp.fc1.weight"][0],
        "num_attention_heads": max(width // 64, 1),  # CLIP's heads are 64 wide
    }  # fmt: skip


SD_V1, SD_V1_LIKE = "sd_v1", "like_sd_v1"

SCRIBBLE_NARROW = narrow.NAME
"""The embedded miniature in its narrow shape. It widens to SD1.5's shapes, and its LoRAs are written in those."""

NARROW_UNET_CONFIG: Config = UNET_CONFIG | {
    "block_out_channels": list(narrow.UNET_WIDTHS), "cross_attention_dim": narrow.WIDTH, "sample_size": narrow.LATENT}
NARROW_TEXT_CONFIG: Config = TEXT_CONFIG | {
    "hidden_size": narrow.WIDTH, "intermediate_size": narrow.TEXT_INNER, "num_attention_heads": narrow.TEXT_HEADS,
    "num_hidden_layers": narrow.TEXT_LAYERS}
"""Configurations of the narrow networks; trainer/miniature/narrow.py builds the modules."""

WANTED = "expected Stable Diffusion 1.5"


def family_of(unet: Config, name: str) -> tuple[str, str]:
    """The family of a UNet's configuration and a one-line note for the user, or "".

    Raises UsageError, with the actual kind of model, for a UNet without SD1.5's block layout.
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
        raise UsageError(f"--base {name}: does not have Stable Diffusion 1.5's blocks, so hosts could not place its LoRA; "
                         f"{WANTED}")
    if context == narrow.WIDTH and unet.get("sample_size") == narrow.LATENT:
        return SCRIBBLE_NARROW, ""
    widths = list(unet.get("block_out_channels", UNET_WIDTHS))
    if context == CONTEXT and widths == UNET_WIDTHS:
        return SD_V1, ""
    return SD_V1_LIKE, (f"has Stable Diffusion 1.5's blocks with other widths ({', '.join(map(str, widths))}; prompt "
                        f"embedding {context}): its LoRA fits only this base")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value
