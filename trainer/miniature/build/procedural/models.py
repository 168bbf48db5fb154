"""The miniature's architecture: SD1.5's block layout at about a tenth of its width, so every module name is the same.

Shapes: pictures (3, 64, 64), latents (4, 16, 16), prompt embeddings (32, 96).
"""

from __future__ import annotations

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PICTURE = 64  # pixels
LATENT = 16
TOKENS = 32
WIDTH = 96  # of a prompt embedding


def vae() -> AutoencoderKL:
    """SD1.5's autoencoder with three levels instead of four: downsamples by 4."""
    return AutoencoderKL(
        sample_size=PICTURE, block_out_channels=(24, 48, 96), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)


def unet() -> UNet2DConditionModel:
    """CrossAttnDown x 3 + Down, two layers per block: SD1.5's 16 transformer blocks, 128 attention projections."""
    return UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=(32, 64, 96, 96), layers_per_block=2, norm_num_groups=16,
        attention_head_dim=4, cross_attention_dim=WIDTH)


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(_text_config(tokenizer))


def clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The judge: a CLIP image/text pair of its own, apart from the text encoder that the UNet listens to."""
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
              "image_size": PICTURE, "patch_size": 8, "projection_dim": 64}
    return CLIPModel(CLIPConfig(text_config=_text_config(tokenizer).to_dict(), vision_config=vision, projection_dim=64))


def noise_scheduler() -> DDPMScheduler:
    """SD1.5's: 1,000 steps of `scaled_linear` betas, noise predicted."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         steps_offset=1)
