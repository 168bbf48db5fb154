"""The noise levels of training: one schedule of alpha-bar, its draw and its grid."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.base.models import Scheduler
from trainer.recipe import Recipe


class NoiseSchedule:
    """alpha-bar of Ho et al. 2020 for T timesteps: the proportions of picture and noise in x_t.

    alphas_cumprod: (T,) float32 on the training device. Timesteps are int64, 0 (almost no noise) to T - 1; training uses
    those in [`first`, `last`) (0: T).
    """

    def __init__(self, alphas_cumprod: Tensor, first: int = 0, last: int = 0) -> None:
        self.alphas_cumprod = alphas_cumprod
        self.first, self.last = first, min(last or len(self), len(self))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @classmethod
    def of(cls, recipe: Recipe, scheduler: Scheduler, device: torch.device) -> NoiseSchedule:
        """The betas of `scheduler` (diffusers' DDPMScheduler of the base), or those of `--noise-schedule`."""
        from diffusers import DDPMScheduler

        overrides: dict[str, str | bool] = {} if recipe.noise_schedule == "base" else {"beta_schedule": recipe.noise_schedule}
        if recipe.zero_snr:  # Lin et al. 2023, algorithm 1
            overrides["rescale_betas_zero_snr"] = True
        alphas_cumprod = DDPMScheduler.from_config(scheduler.config, **overrides).alphas_cumprod
        return cls(alphas_cumprod.to(device, torch.float32), recipe.min_timestep, recipe.max_timestep)

    def draw(self, generator: torch.Generator, count: int) -> Tensor:
        """(count,) timesteps for training, uniform, on the CPU."""
        return torch.randint(self.first, self.last, (count,), generator=generator)

    def grid(self, count: int) -> Tensor:
        """(count,) timesteps spread evenly over the trained ones, for the held-out loss."""
        return self.first + ((torch.arange(count) + 0.5) * (self.last - self.first) / max(count, 1)).long()

    def alpha_bar(self, timestep: Tensor) -> Tensor:
        """(B, 1, 1, 1) float32, for (B,) timesteps."""
        return self.alphas_cumprod[timestep].view(-1, 1, 1, 1)

    def add_noise(self, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
        """x_t, (B, 4, h, w)."""
        alpha_bar = self.alpha_bar(timestep)
        # DDPM (Ho et al. 2020), equation 4: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps

    def velocity(self, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
        """v, (B, 4, h, w)."""
        alpha_bar = self.alpha_bar(timestep)
        # Salimans & Ho 2022, appendix D: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0

    def snr(self, timestep: Tensor) -> Tensor:
        """(B,) float32, the signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
        alpha_bar = self.alphas_cumprod[timestep]
        return alpha_bar / (1 - alpha_bar)
