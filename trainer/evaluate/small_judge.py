"""The miniature's own judge, with a CLIP's interface, for LoRAs of the embedded miniature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.evaluate.judge import BATCH, Judge, Say
from trainer.miniature.judge import prepare, read_judge
from trainer.miniature.shipped import JUDGE
from trainer.recipe import MINIATURE


def find_judge(name: str, option: str, device: torch.device, say: Say) -> Judge:
    """The judge `name`, a CLIP's folder or hub id, or `miniature`. Raises as `Judge` does."""
    if name == MINIATURE:
        return SmallJudge(option, say)
    return Judge(name, option, device, say)


class SmallJudge(Judge):
    """The judge that ships. It always runs on the CPU, because a picture takes only two milliseconds.

    Unknown words are left out of a text and reported once. JobError if its file is damaged.
    """

    def __init__(self, option: str, say: Say) -> None:
        self.name, self.option, self.say = MINIATURE, option, say
        self.model = read_judge(JUDGE)
        self.identity = self.model.identity
        self.told: set[str] = set()

    @torch.no_grad()
    def images(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Features, float32 (N, 128) of length 1, of uint8 (H, W, 3) pictures."""
        return torch.cat([self.model.images(prepare(pictures[k : k + BATCH])) for k in range(0, len(pictures), BATCH)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features, float32 (N, 128) of length 1."""
        unknown = {word: None for text in texts for word in self.model.read(text).unknown if word not in self.told}
        if unknown:
            self.told.update(unknown)
            self.say(f"{self.option} {self.name}: does not know {', '.join(unknown)}; it judges by the other words")
        return self.model.texts(texts)
