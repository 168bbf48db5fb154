"""The optimizer and its learning-rate schedule, each picked once from the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainer.recipe import Recipe

Schedule = Callable[[int], float]
"""Learning rate of an optimizer step, counted from 0."""


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up from 0 to `peak` in `warmup` steps, then half a cosine to 0 at `total` (diffusers' `cosine`)."""

    peak: float
    warmup: int
    total: int

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * step / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


def choose_schedule(recipe: Recipe, total: int) -> Schedule:
    """The learning rate over a run of `total` optimizer steps."""
    return Cosine(recipe.learning_rate, recipe.warmup, total)


def choose_optimizer(recipe: Recipe, parameters: Sequence[torch.nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """The optimizer over `parameters`; the loop sets its rate before every step."""
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay,
                             fused=device.type == "cuda")  # fmt: skip
