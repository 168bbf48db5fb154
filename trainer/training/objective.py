"""What is minimised: the squared error of the UNet's prediction (section 3.2.1), at noise levels of one schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convert.errors import JobError
from trainer.encoding.encoded_set import EncodedSet
from trainer.recipe import Recipe
from trainer.training.draws import Draw


class Objective:
    """Adds noise, asks the UNet, weighs the error. Built once; the loop only calls `loss`.

    alphas_cumprod: (T,) float32 on the device, alpha-bar of Ho et al. 2020 for T timesteps.
    """

    def __init__(self, recipe: Recipe, scheduler: Any, device: torch.device) -> None:
        from diffusers import DDPMScheduler

        overrides = {} if recipe.noise_schedule == "base" else {"beta_schedule": recipe.noise_schedule}
        schedule = DDPMScheduler.from_config(scheduler.config, **overrides)
        self.alphas_cumprod = schedule.alphas_cumprod.to(device, torch.float32)
        self.timesteps = len(self.alphas_cumprod)
        self.predicts = schedule.config.prediction_type
        if self.predicts not in ("epsilon", "v_prediction"):
            raise JobError(f"the base predicts {self.predicts!r}; expected epsilon or v_prediction")
        self.min_snr_gamma = recipe.min_snr_gamma

    def loss(self, unet: Any, encoded: EncodedSet, draw: Draw) -> Tensor:
        """Each picture's loss, (B,) float32, for `draw` on the device."""
        mean, std, embedding = encoded.take(draw.picture, draw.view, draw.dropped)
        x_0 = mean.float() + std.float() * draw.posterior
        alpha_bar = self.alphas_cumprod[draw.timestep].view(-1, 1, 1, 1)
        # DDPM (Ho et al. 2020), equation 4: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * draw.eps
        predicted = unet(x_t.to(unet.dtype), draw.timestep, embedding.to(unet.dtype), return_dict=False)[0].float()
        if self.predicts == "epsilon":
            target = draw.eps
        else:  # Salimans & Ho 2022, appendix D: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
            target = alpha_bar.sqrt() * draw.eps - (1 - alpha_bar).sqrt() * x_0
        return (predicted - target).square().mean(dim=(1, 2, 3)) * self.weight(draw.timestep)

    def weight(self, timestep: Tensor) -> Tensor:
        """(B,) float32: 1, or min-SNR's min(SNR, gamma) / SNR (Hang et al. 2023; for v, over SNR + 1)."""
        if not self.min_snr_gamma:
            return torch.ones_like(timestep, dtype=torch.float32)
        alpha_bar = self.alphas_cumprod[timestep]
        snr = alpha_bar / (1 - alpha_bar)
        return snr.clamp(max=self.min_snr_gamma) / (snr if self.predicts == "epsilon" else snr + 1)
