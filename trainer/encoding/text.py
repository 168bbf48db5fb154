"""Encodes captions with CLIP's text encoder, in chunks if they are too long for it, like AUTOMATIC1111's web UI."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.base.load import Base
from trainer.base.models import TextEncoder, Tokenizer
from trainer.encoding.formats import moved, storage_dtype

CAPTIONS_AT_ONCE = 16
MOST_CHUNKS = 3
"""Most chunks of 75 tokens: 225 tokens in total, the same as kohya's limit."""
BACKTRACK = 20
"""Most tokens after a chunk's last comma that move to the next one: AUTOMATIC1111's "prompt word wrap length limit"."""


def encode_captions(captions: Sequence[str], base: Base, device: torch.device | str) -> Tensor:
    """Prompt embeddings (C, tokens, width) on `device`: those of `StableDiffusionPipeline.encode_prompt`."""
    return encode_rows(tokenize(captions, base), base, torch.device(device))


def encode_rows(ids: Tensor, base: Base, device: torch.device) -> Tensor:
    """Prompt embeddings (M, tokens, width) on `device` of token ids (M, tokens)."""
    encoder = moved(base.text_encoder, device, torch.float32)
    parts = [encode_ids(some, encoder, CAPTIONS_AT_ONCE) for some in ids.split(CAPTIONS_AT_ONCE) if len(some)]
    empty = torch.empty(0, ids.shape[1], encoder.config.hidden_size)
    return torch.cat(parts or [empty]).to(device, storage_dtype(device))


def tokenize(captions: Sequence[str], base: Base) -> Tensor:
    """Token ids (len(captions), tokens), padded and cut to the text encoder's length."""
    tokens = base.tokenizer.model_max_length
    if not captions:
        return torch.empty(0, tokens, dtype=torch.int64)
    ids: Tensor = base.tokenizer(list(captions), padding="max_length", max_length=tokens, truncation=True,
                                 return_tensors="pt").input_ids  # fmt: skip
    return ids


def skipped(base: Base) -> dict[str, object]:
    """The part of a cache's key for --clip-skip; empty without one."""
    return {"clip_skip": base.clip_skip} if base.clip_skip > 1 else {}


def chunked(captions: Sequence[str], tokenizer: Tokenizer) -> list[Tensor]:
    """Token ids of each caption, (n, tokens), n from 1 to `MOST_CHUNKS`; longer captions are cut."""
    if not captions:
        return []
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    room = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    found = []
    for ids in tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids:
        rows = [[begin, *part, end, *[pad] * (room - len(part))] for part in split(ids, room, comma)]
        found.append(torch.tensor(rows[:MOST_CHUNKS], dtype=torch.int64))
    return found


def split(ids: Sequence[int], room: int, comma: int) -> list[list[int]]:
    """Token ids in parts of at most `room`. A full part ends at its last comma if that is at most `BACKTRACK` tokens back, and
    the tokens after it move to the next part (AUTOMATIC1111, `modules/sd_hijack_clip.py`)."""
    parts: list[list[int]] = []
    part: list[int] = []
    last_comma = -1
    for token in ids:
        if token == comma:
            last_comma = len(part)
        elif len(part) == room and last_comma >= 0 and room - last_comma <= BACKTRACK:
            parts.append(part[: last_comma + 1])
            part, last_comma = part[last_comma + 1 :], -1
        if len(part) == room:
            parts.append(part)
            part, last_comma = [], -1
        part.append(token)
    return [*parts, part] if part or not parts else parts


def count_tokens(captions: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Number of tokens of each caption, without start and end."""
    if not captions:
        return []
    parts = [captions[begin : begin + 1000] for begin in range(0, len(captions), 1000)]  # 20,000 at once would need much memory
    return [len(ids) for part in parts for ids in tokenizer(list(part), add_special_tokens=False, verbose=False).input_ids]


def caption_digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()


@torch.no_grad()
def encode_ids(ids: Tensor, encoder: TextEncoder, batch: int) -> Tensor:
    """CLIP's last hidden states, float32 (B, tokens, width) on the encoder's device, for at most `batch` rows; the input is
    padded to `batch` rows."""
    whole = torch.cat([ids, ids[-1:].expand(batch - len(ids), -1)]).to(encoder.device)
    states: Tensor = encoder(whole).last_hidden_state
    return states[: len(ids)]
