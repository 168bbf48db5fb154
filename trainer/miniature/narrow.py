"""The narrow networks: Stable Diffusion 1.5's topology at a fraction of its width, so that widening them is exact.

UNet 64-128-256-256 (a fifth), text encoder 64 wide with 2 layers (a twelfth), autoencoder 16-32-64-64 (an eighth). Other
factors do not work with the UNet's concatenations and group norms. Pictures (3, 128, 128), latents (4, 16, 16), prompt
embeddings (77, 64), CLIP's own 49,408 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convert.miniature import SIDE

if TYPE_CHECKING:  # the constants are used without torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

PICTURE, LATENT = SIDE, SIDE // 8  # pixels
TOKENS, CONTEXT, WIDTH = 49408, 77, 64
"""CLIP's vocabulary, the tokens of a prompt, and the width of the narrow prompt embedding."""
START, END = 49406, 49407  # CLIP's start and end tokens; it pads with the latter
NAME = "scribble_narrow"
"""The narrow miniature's name as a base, in a narrow LoRA's metadata (`ss_base_model_version`)."""
UNET_WIDTHS = (64, 128, 256, 256)
TEXT_LAYERS, TEXT_HEADS, TEXT_INNER = 2, 4, 256


def narrow_vae() -> AutoencoderKL:
    """SD1.5's autoencoder, 4 groups instead of 32."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=PICTURE, block_out_channels=(16, 32, 64, 64), layers_per_block=2, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215)


def narrow_unet() -> UNet2DConditionModel:
    """SD1.5's UNet with its 8 heads and 32 groups."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=UNET_WIDTHS, layers_per_block=2, norm_num_groups=32,
        attention_head_dim=8, cross_attention_dim=WIDTH)


def narrow_text_encoder() -> CLIPTextModel:
    """CLIP ViT-L/14's text encoder with two layers and 4 heads of 16."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(
        vocab_size=TOKENS, hidden_size=WIDTH, intermediate_size=TEXT_INNER, num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=CONTEXT, hidden_act="quick_gelu", bos_token_id=START, eos_token_id=END, pad_token_id=END))
