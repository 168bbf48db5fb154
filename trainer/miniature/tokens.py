"""The narrow text encoder's token table: a row for each token it was trained on, and one shared by all others.

Tokens outside the training differ only by fixed noise. So unknown words have little effect, a LoRA can still tell them apart,
and 300 rows ship instead of 49,408.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.miniature.narrow import TOKENS, WIDTH

NOISE = 0.06
"""Range of the noise's uniform distribution."""


def token_places(known: Sequence[int]) -> Tensor:
    """int64 (49408,): each token's row: the index in `known`, or `len(known)` for all others."""
    places = torch.full((TOKENS,), len(known))
    places[list(known)] = torch.arange(len(known))
    return places


def token_noise(known: Sequence[int]) -> Tensor:
    """float32 (49408, 64), zero for `known` tokens; uses only integer arithmetic, so it is the same on every machine."""
    x = np.arange(TOKENS * WIDTH, dtype=np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # a 32-bit integer hash: xor of a shift, product, twice
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x = x ^ (x >> np.uint32(16))
    uniform = (x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)
    noise = torch.from_numpy(uniform * np.float32(NOISE)).view(TOKENS, WIDTH)
    noise[list(known)] = 0
    return noise


def token_table(rows: Tensor, known: Sequence[int]) -> Tensor:
    """The whole embedding, float32 (49408, 64), from `rows` (len(known) + 1, 64), the last of them shared."""
    return rows[token_places(known)] + token_noise(known)
