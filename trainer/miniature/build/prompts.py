"""Captions as the text encoder's input: 77 CLIP token ids, sometimes with random other words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.miniature.build.icons import STYLES
from trainer.miniature.build.pictures import COUNTS, GROUNDS, caption
from trainer.miniature.narrow import CONTEXT, END, START, TOKENS, WIDTH
from trainer.miniature.tokens import token_noise, token_places

DROPPED, STRANGE, ONLY_STRANGE = 0.10, 0.10, 0.03
"""Probabilities that a caption is empty, is surrounded by unknown tokens, consists only of unknown tokens."""


def known_tokens(tokenizer: Any, words: list[str]) -> list[int]:
    """The tokens used in captions, in ascending order. All other tokens are unknown."""
    texts = [*words, *(word + "s" for word in words), *STYLES.values(), *GROUNDS, *COUNTS,
             "a an of on and with the background white one , ."]
    return sorted({token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]} | {START, END})


class FewTokens(nn.Module):
    """CLIP's token embedding with a row for each known token, and one shared by all unknown tokens, plus noise per token."""

    index: torch.Tensor
    noise: torch.Tensor

    def __init__(self, known: list[int]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(len(known) + 1, WIDTH) * 0.1)  # the last is shared
        self.register_buffer("index", token_places(known), persistent=False)
        self.register_buffer("noise", token_noise(known), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.rows[self.index[tokens]] + self.noise[tokens]

    @property
    def weight(self) -> torch.Tensor:
        """The whole table, float32 (49408, 64)."""
        return self.rows[self.index] + self.noise


class Captions:
    """Draws a caption for a picture and tokenizes it."""

    def __init__(self, tokenizer: Any, known: list[int]) -> None:
        self.tokenizer, self.strange = tokenizer, np.setdiff1d(np.arange(TOKENS), known)
        self.seen: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        if text not in self.seen:
            self.seen[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.seen[text]

    def draw(self, words: Sequence[str], icon_set: str, ground: str, rng: np.random.Generator) -> list[int]:
        """A row of 77 tokens for one picture."""
        tokens, chance = self.tokens(caption(words, icon_set, ground, rng)), rng.random()
        if chance < DROPPED:
            tokens = []
        elif chance < DROPPED + ONLY_STRANGE:
            tokens = self._strange(rng)
        elif chance < DROPPED + ONLY_STRANGE + STRANGE:
            comma = self.tokens(",")
            before, after = (self._strange(rng) if rng.random() < 0.6 else [] for _ in range(2))
            tokens = [*before, *(comma if before else []), *tokens, *(comma if after else []), *after]
        return padded(tokens)

    def _strange(self, rng: np.random.Generator) -> list[int]:
        return [int(token) for token in rng.choice(self.strange, rng.integers(1, 6))]


def padded(tokens: list[int]) -> list[int]:
    """77 tokens: the start token, at most 75 others, then end tokens, as every host pads."""
    return ([START, *tokens[: CONTEXT - 2]] + [END] * CONTEXT)[:CONTEXT]
