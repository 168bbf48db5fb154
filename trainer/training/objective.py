"""The objective: the UNet's prediction target, the error function, and the weights of noise levels.

Each choice is a small object, selected once by `choose_objective`; to add one, write it here and add it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convert.errors import JobError
from trainer.base import models
from trainer.base.models import Predictor, Scheduler
from trainer.encoding.encoded_set import EncodedSet, unpacked
from trainer.recipe import Recipe
from trainer.training.draws import Draw
from trainer.training.noise_schedule import NoiseSchedule

Target = Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]
"""(schedule, x_0, eps, timestep) -> the UNet's target, (B, 4, h, w)."""
Weighting = Callable[[NoiseSchedule, Tensor], Tensor]
"""(schedule, timestep) -> the weight of each picture's loss, (B,) float32."""
Distance = Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]
"""(schedule, predicted, wanted, timestep) -> the error of each element, (B, 4, h, w) float32."""


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
class Debiased:
    """1 / sqrt(SNR) for eps (Yu et al. 2023, "Debias the Training of Diffusion Models"), 1 / (SNR + 1) for v; SNR at most 1000,
    as kohya's `debiased_estimation_loss`."""

    predicts: str

    def __call__(self, schedule: NoiseSchedule, timestep: Tensor) -> Tensor:
        snr = schedule.snr(timestep).clamp(max=1000)
        return snr.rsqrt() if self.predicts == "epsilon" else 1 / (snr + 1)


def squared(schedule: NoiseSchedule, predicted: Tensor, wanted: Tensor, timestep: Tensor) -> Tensor:
    return (predicted - wanted).square()


@dataclass(frozen=True)
class Huber:
    """Squared near 0, linear far from it, where outliers in the data would dominate (Khrapov et al. 2024, "Improving Diffusion
    Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss")."""

    c: float
    """the error at which it becomes linear, at the noisiest timestep; 1 at the least noisy"""

    def __call__(self, schedule: NoiseSchedule, predicted: Tensor, wanted: Tensor, timestep: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar(timestep)
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
        delta = (1 - self.c) / (1 + sigma) ** 2 + self.c  # kohya's `huber_schedule` "snr"
        # 2 delta (sqrt(error^2 + delta^2) - delta): error^2 where that is far below delta^2, 2 delta |error| far above
        return 2 * delta * ((predicted - wanted).square().add(delta**2).sqrt() - delta)


class Encoded:
    """Prompt embeddings with a frozen text encoder: stored in the encoded set."""

    def __call__(self, embedding: Tensor) -> Tensor:
        return embedding


@dataclass(frozen=True)
class TextEncoder:
    """Prompt embeddings with a trained text encoder: computed in each step, from the token ids in the encoded set."""

    network: models.TextEncoder
    """transformers' CLIPTextModel with peft's LoRA, on the training device"""
    tokens: int
    """tokens of a chunk"""

    def __call__(self, ids: Tensor) -> Tensor:
        """(B, chunks * tokens) int64 -> (B, chunks * tokens, width)."""
        states: Tensor = self.network(ids.view(-1, self.tokens)).last_hidden_state
        return states.view(*ids.shape, -1)


@dataclass(frozen=True)
class Objective:
    """Adds noise to the latents, runs the UNet and weights the error (section 3.2.1 of the paper)."""

    schedule: NoiseSchedule
    target: Target
    weighting: Weighting
    distance: Distance
    embed: Callable[[Tensor], Tensor]
    """turns the encoded set's entry for a caption into its prompt embedding"""

    def loss(self, unet: Predictor, encoded: EncodedSet, draw: Draw) -> Tensor:
        """Each picture's loss, (B,) float32, for `draw` on the device. `unet`: diffusers' UNet, plain or compiled."""
        mean, std, embedding = encoded.take(draw.picture, draw.view, draw.dropped, draw.choice, shape=draw.shape,
                                            chunks=draw.chunks)
        eps = unpacked(draw.eps, draw.shape)
        x_0 = mean.float() + std.float() * unpacked(draw.posterior, draw.shape)
        x_t = self.schedule.add_noise(x_0, eps, draw.timestep)
        dtype = unet.dtype  # read once: diffusers searches all modules for it
        prompt = self.embed(embedding).to(dtype)
        predicted = unet(x_t.to(dtype), draw.timestep, prompt, return_dict=False)[0].float()
        error = self.distance(self.schedule, predicted, self.target(self.schedule, x_0, eps, draw.timestep), draw.timestep)
        if (weight := encoded.loss_weight(draw.picture, draw.view, draw.shape)) is not None:
            error = error * weight
        return error.mean(dim=(1, 2, 3)) * self.weighting(self.schedule, draw.timestep)


def choose_objective(recipe: Recipe, scheduler: Scheduler, device: torch.device,
                     text_encoder: models.TextEncoder | None = None) -> Objective:  # fmt: skip
    """The recipe's objective for a base with `scheduler` (diffusers' DDPMScheduler).

    text_encoder: the base's, on `device`, if it is trained; the encoded set then contains token ids.

    Raises:
        JobError: the base predicts neither eps nor v.
    """
    predicts = scheduler.config.prediction_type
    if predicts not in TARGETS:
        raise JobError(f"the base predicts {predicts!r}; expected {' or '.join(TARGETS)}")
    if recipe.zero_snr and predicts == "epsilon":
        raise JobError("--zero-snr: at zero SNR the input is only noise, so a base that predicts noise learns nothing there: "
                       "leave it out, or give --prediction v if the base predicts v")
    weighting = (MinSNR(recipe.min_snr_gamma, predicts) if recipe.min_snr_gamma else Debiased(predicts) if recipe.debiased
                 else uniform)
    distance = Huber(recipe.huber_c) if recipe.loss == "huber" else squared
    embed = TextEncoder(text_encoder, text_encoder.config.max_position_embeddings) if text_encoder else Encoded()
    return Objective(NoiseSchedule.of(recipe, scheduler, device), TARGETS[predicts], weighting, distance, embed)
