"""The optimizer and its learning-rate schedules, each selected once from the recipe.

A schedule is a small frozen object with its peak; to add one, write it here and add it to `SCHEDULES`. The same applies to
optimizers and `OPTIMIZERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from convert.errors import JobError
from trainer.lora.adapter import TEXT_FACTORS
from trainer.recipe import Recipe

Schedule = Callable[[int], float]
"""Learning rate of an optimizer step, counted from 0."""
Groups = list[dict[str, float | list[torch.nn.Parameter]]]
"""torch's parameter groups: the UNet's factors, then, if the text encoder is trained, its own."""


@dataclass(frozen=True)
class Warmed:
    """Linear warm-up from 0 to `peak` in `warmup` steps, then `shape` of the progress through the remaining steps."""

    peak: float
    warmup: int
    total: int

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * step / self.warmup
        return self.peak * self.shape((step - self.warmup) / max(1, self.total - self.warmup))

    def shape(self, progress: float) -> float:
        """From 0 to 1, for a `progress` from 0 to 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cosine(Warmed):
    """Half a cosine to 0 (diffusers' `cosine`)."""

    def shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Constant(Warmed):
    """Constant at the peak (diffusers' `constant_with_warmup`)."""

    def shape(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class CosineWithRestarts(Warmed):
    """`cycles` times half a cosine from the peak to 0 (diffusers' `cosine_with_restarts`)."""

    cycles: int

    def shape(self, progress: float) -> float:
        if progress >= 1:
            return 0.0
        return 0.5 * (1 + math.cos(math.pi * ((self.cycles * progress) % 1)))


@dataclass(frozen=True)
class Until:
    """`schedule` for the first `last` steps, then 0, which freezes the parameters."""

    schedule: Schedule
    last: int

    def __call__(self, step: int) -> float:
        return self.schedule(step) if step < self.last else 0.0


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": Cosine, "constant": Constant, "cosine_with_restarts": CosineWithRestarts,
}  # fmt: skip


def choose_schedule(recipe: Recipe, total: int, peak: float = 0.0) -> Schedule:
    """The learning rate over a run of `total` optimizer steps. peak: 0 for the UNet's, `recipe.learning_rate`."""
    more = {"cycles": recipe.lr_cycles} if recipe.lr_schedule == "cosine_with_restarts" else {}
    return SCHEDULES[recipe.lr_schedule](peak or recipe.learning_rate, recipe.warmup_steps(total), total, **more)


def choose_schedules(recipe: Recipe, total: int) -> tuple[Schedule, ...]:
    """A schedule for every parameter group of `choose_optimizer`."""
    unet = choose_schedule(recipe, total)
    if not recipe.text_encoder:
        return (unet,)
    text = choose_schedule(recipe, total, recipe.true_text_encoder_rate)
    return unet, Until(text, math.ceil(recipe.text_encoder_until * total))


def adamw(groups: Groups, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=device.type == "cuda")


def prodigy(groups: Groups, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Mishchenko & Defazio 2024: estimates AdamW's step size; the learning rate is a factor of it, usually 1."""
    if not find_spec("prodigyopt"):
        raise JobError("--optimizer prodigy: prodigyopt is not installed: pip install prodigyopt")
    from prodigyopt import Prodigy

    # weight decay is set in the groups, because Prodigy prints a line if it is an argument
    decayed = [group | {"weight_decay": recipe.weight_decay} for group in groups]
    warms_up = bool(recipe.warmup or recipe.warmup_share)
    return Prodigy(decayed, lr=recipe.learning_rate, use_bias_correction=True, safeguard_warmup=warms_up)


OPTIMIZERS: dict[str, Callable[[Groups, Recipe, torch.device], torch.optim.Optimizer]] = {"adamw": adamw, "prodigy": prodigy}


def choose_optimizer(recipe: Recipe, factors: Sequence[tuple[str, torch.nn.Parameter]],
                     device: torch.device) -> torch.optim.Optimizer:  # fmt: skip
    """The optimizer over `factors`, by name; the loop sets the groups' rates before every step."""
    unet = [factor for name, factor in factors if not name.startswith(TEXT_FACTORS)]
    text = [factor for name, factor in factors if name.startswith(TEXT_FACTORS)]
    return OPTIMIZERS[recipe.optimizer]([{"params": part} for part in (unet, text) if part], recipe, device)


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The UNet's learning rate in the last step, multiplied by Prodigy's estimate if it has one."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))
