"""A small Stable Diffusion of random weights: SD1.5's block layout at about a tenth of its width, with a tokenizer of its own.

Every module has SD1.5's name. Shapes: pictures (3, 64, 64), latents (4, 16, 16), prompt embeddings (32, 96).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.drawings import WORDS

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


def noise_scheduler() -> DDPMScheduler:
    """SD1.5's: 1,000 steps of `scaled_linear` betas, noise predicted."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         steps_offset=1)


_WORDS = ["a", "of", "on", "scribble", "photo", "red", "green", "background", "with", "and", "the"]


def _bytes_as_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 byte values, which CLIP's vocabulary starts with."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) learned on `words` until each of them is one token."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in zip(word, word[1:])):
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and the rest into `folder` and load it. Unknown words are split into pieces."""
    words = {w for name in [*WORDS, *_WORDS] for w in name.split()}
    characters = _bytes_as_characters()
    merges = _merges(sorted(words))
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += [t for t in dict.fromkeys(a + b for a, b in merges) if t not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_base(folder: Path) -> Path:
    """The whole base as a diffusers folder."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder / "tokenizer")
    unet().save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vae")
    text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    noise_scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder
