"""Captions through CLIP's text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.base.load import Base
from trainer.encoding.formats import moved, storage_dtype

CAPTIONS_AT_ONCE = 16


def encode_captions(captions: Sequence[str], base: Base, device: torch.device | str) -> Tensor:
    """Prompt embeddings (C, tokens, width) on `device`: those of `StableDiffusionPipeline.encode_prompt`."""
    device = torch.device(device)
    ids = tokenize(captions, base)
    encoder = moved(base.text_encoder, device, torch.float32)
    parts = [encode_ids(some, encoder, CAPTIONS_AT_ONCE) for some in ids.split(CAPTIONS_AT_ONCE) if len(some)]
    empty = torch.empty(0, ids.shape[1], encoder.config.hidden_size)
    return torch.cat(parts or [empty]).to(device, storage_dtype(device))


def tokenize(captions: Sequence[str], base: Base) -> Tensor:
    """Token ids (len(captions), tokens), padded and cut to what the text encoder reads."""
    tokens = base.tokenizer.model_max_length
    if not captions:
        return torch.empty(0, tokens, dtype=torch.int64)
    ids: Tensor = base.tokenizer(list(captions), padding="max_length", max_length=tokens, truncation=True,
                                 return_tensors="pt").input_ids  # fmt: skip
    return ids


def skipped(base: Base) -> dict[str, object]:
    """What a cache's key says of --clip-skip: nothing where there is none."""
    return {"clip_skip": base.clip_skip} if base.clip_skip > 1 else {}


def caption_digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()


@torch.no_grad()
def encode_ids(ids: Tensor, encoder: Any, batch: int) -> Tensor:
    """CLIP's last hidden states, float32 (B, tokens, width) where `encoder` is, of at most `batch` rows, filled up."""
    whole = torch.cat([ids, ids[-1:].expand(batch - len(ids), -1)]).to(encoder.device)
    states: Tensor = encoder(whole).last_hidden_state
    return states[: len(ids)]
