"""The objective: what the UNet is asked to predict, how an error counts, and how noise levels are weighed.

Each choice is a small object, picked once by `choose_objective`; to add one, write it here and name it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convert.errors import JobError
from trainer.base.models import Predictor, Scheduler
from trainer.encoding.encoded_set import EncodedSet
from trainer.recipe import Recipe
from trainer.training.draws import Draw
from trainer.training.noise_schedule import NoiseSchedule

Target = Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]
"""(schedule, x_0, eps, timestep) -> what the UNet is to predict, (B, 4, h, w)."""
Weighting = Callable[[NoiseSchedule, Tensor], Tensor]
"""(schedule, timestep) -> the weight of each picture's loss, (B,) float32."""


def epsilon(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
    """The noise itself (Ho et al. 2020, equation 14; the paper's objective)."""
    return eps


def v_prediction(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
    return schedule.velocity(x_0, eps, timestep)


TARGETS: dict[str, Target] = {"epsilon": epsilon, "v_prediction": v_prediction}
"""By the prediction types of diffusers' schedulers."""


def uniform(schedule: NoiseSchedule, timestep: Tensor) -> Tensor:
    return torch.ones_like(timestep, dtype=torch.float32)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v (Hang et al. 2023, section 3.4)."""

    gamma: float
    predicts: str

    def __call__(self, schedule: NoiseSchedule, timestep: Tensor) -> Tensor:
        snr = schedule.snr(timestep)
        return snr.clamp(max=self.gamma) / (snr if self.predicts == "epsilon" else snr + 1)


@dataclass(frozen=True)
class Objective:
    """Adds noise to the latents, asks the UNet and weighs the squared error (section 3.2.1 of the paper)."""

    schedule: NoiseSchedule
    target: Target
    weighting: Weighting

    def loss(self, unet: Predictor, encoded: EncodedSet, draw: Draw) -> Tensor:
        """Each picture's loss, (B,) float32, for `draw` on the device. `unet`: diffusers' UNet, or it compiled."""
        mean, std, embedding = encoded.take(draw.picture, draw.view, draw.dropped)
        x_0 = mean.float() + std.float() * draw.posterior
        x_t = self.schedule.add_noise(x_0, draw.eps, draw.timestep)
        predicted = unet(x_t.to(unet.dtype), draw.timestep, embedding.to(unet.dtype), return_dict=False)[0].float()
        error = (predicted - self.target(self.schedule, x_0, draw.eps, draw.timestep)).square()
        return error.mean(dim=(1, 2, 3)) * self.weighting(self.schedule, draw.timestep)


def choose_objective(recipe: Recipe, scheduler: Scheduler, device: torch.device) -> Objective:
    """The recipe's objective for a base with `scheduler` (diffusers' DDPMScheduler).

    Raises:
        JobError: the base predicts neither eps nor v.
    """
    predicts = scheduler.config.prediction_type
    if predicts not in TARGETS:
        raise JobError(f"the base predicts {predicts!r}; expected {' or '.join(TARGETS)}")
    weighting = MinSNR(recipe.min_snr_gamma, predicts) if recipe.min_snr_gamma else uniform
    return Objective(NoiseSchedule.of(recipe, scheduler, device), TARGETS[predicts], weighting)
