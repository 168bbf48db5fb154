"""Pictures from a base with an adapter at a scale: DPM-Solver++ (Lu et al. 2022, diffusers') and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from trainer.base.load import Base
from trainer.base.models import UNet
from trainer.base.sd15 import SCRIBBLE_NARROW
from trainer.encoding.text import encode_captions
from trainer.lora import adapter
from trainer.lora.merged import merged
from trainer.memory import halving
from trainer.rng import Stream, generator_of
from trainer.training.devices import Compute

GUIDANCE, STEPS = 7.5, 25
MINIATURE_GUIDANCE, MINIATURE_STEPS = 5.0, 12


class Sampler:
    """Draws pictures with `base.unet`, which may carry an adapter. Text embeddings are computed once per prompt.

    steps, guidance: 0 stands for the base's default: 25 steps and 7.5; for the miniature 12 and 5.
    size: width and height of a picture in pixels; 0 stands for `resolution`, whose 0 stands for the base's own.
    Pictures that share a seed share their starting noise, whatever the scale.
    """

    def __init__(self, base: Base, compute: Compute, *, resolution: int = 0, size: tuple[int, int] = (0, 0), steps: int = 0,
                 guidance: float = 0.0) -> None:  # fmt: skip
        small = base.family == SCRIBBLE_NARROW
        self.base, self.compute = base, compute
        self.steps = steps or (MINIATURE_STEPS if small else STEPS)
        self.guidance = guidance or (MINIATURE_GUIDANCE if small else GUIDANCE)
        self.down = 2 ** (len(base.vae.config.block_out_channels) - 1)
        side = resolution or base.resolution
        self.size = size[0] or side, size[1] or side
        self._prompts: dict[tuple[str, float], Tensor] = {}

    def noise(self, seed: int, size: tuple[int, int] = (0, 0)) -> Tensor:
        """(4, h, w) float32 starting noise of `seed`; `size` as in a call."""
        width, height = ((pixels or own) // self.down for pixels, own in zip(size, self.size, strict=True))
        generator = generator_of(seed, Stream.STARTING_NOISE)
        return torch.randn(self.base.unet.config.in_channels, height, width, generator=generator)

    def __call__(self, prompts: list[str], seeds: list[int], *, scale: float | Sequence[float], negative: str = "",
                 size: tuple[int, int] = (0, 0), steps: int = 0, guidance: float = 0.0) -> np.ndarray:  # fmt: skip
        """One picture for each of (prompt, seed): uint8 (N, H, W, 3). `scale` weighs the adapter, for all or for each.

        size: width and height in pixels. 0 in size, steps or guidance stands for the sampler's own. The batch is halved if
        memory runs out; JobError if a single picture does not fit.
        """
        scales = [float(scale)] * len(seeds) if isinstance(scale, int | float) else list(scale)

        def draw(count: int) -> np.ndarray:
            parts = [slice(start, start + count) for start in range(0, len(seeds), count)]
            return np.concatenate([self._draw(prompts[some], seeds[some], scales[some], negative, size, steps, guidance)
                                   for some in parts])

        pictures, _ = halving(draw, len(seeds), what="a single picture",
                              advice="close other programs that use the GPU, or give a smaller --resolution")
        return pictures

    @torch.no_grad()
    def _draw(self, prompts: list[str], seeds: list[int], scales: list[float], negative: str, size: tuple[int, int],
              steps: int, guidance: float) -> np.ndarray:  # fmt: skip
        from diffusers import DPMSolverMultistepScheduler

        base, device = self.base, self.compute.device
        dtype = base.unet.dtype  # kept: diffusers looks through all modules for it
        scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler.config, use_karras_sigmas=False)
        scheduler.set_timesteps(steps or self.steps, device=device)
        x = torch.stack([self.noise(seed, size) for seed in seeds]).to(device) * scheduler.init_noise_sigma
        if adapter.has_adapter(base.text_encoder):
            self._prompts.clear()  # its weights may have changed since
        texts = torch.cat([self._embedding(some, scales) for some in ([negative] * len(prompts), prompts)]).to(dtype)
        base.unet.to(device)
        with _weighed(base.unet, scales, device):
            for timestep in scheduler.timesteps:
                both = scheduler.scale_model_input(torch.cat([x, x]), timestep).to(dtype)
                with self.compute.context():
                    predicted = base.unet(both, timestep, texts, return_dict=False)[0].float()
                without, with_text = predicted.chunk(2)
                # classifier-free guidance, Ho & Salimans 2022, equation 6
                guided = without + (guidance or self.guidance) * (with_text - without)
                x = scheduler.step(guided, timestep, x, return_dict=False)[0]
        return self.decode(x)

    def _embedding(self, prompts: list[str], scales: list[float]) -> Tensor:
        """(N, tokens, width); depends on the scale if the text encoder has an adapter too."""
        keys = [(prompt, scale if adapter.has_adapter(self.base.text_encoder) else 1.0)
                for prompt, scale in zip(prompts, scales, strict=True)]
        for prompt, scale in keys:
            if (prompt, scale) not in self._prompts:
                adapter.set_text_scale(self.base.text_encoder, scale)
                self._prompts[prompt, scale] = encode_captions([prompt], self.base, self.compute.device)[0]
        return torch.stack([self._prompts[key] for key in keys])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (N, 4, h, w), scaled, through the VAE: uint8 (N, H, W, 3)."""
        vae = self.base.vae.to(latents.device)
        pictures = []
        for one in latents.split(4):
            pixels = vae.decode(one.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
            pictures.append(((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(pictures)


def _weighed(unet: UNet, scales: list[float], device: torch.device) -> AbstractContextManager[None]:
    """Scale the adapter, if there is one, for a batch of len(scales) pictures."""
    if not adapter.has_adapter(unet):
        return nullcontext()
    if len(set(scales)) == 1:
        return merged(unet, scales[0])
    _weigh_each(unet, scales, device)
    return nullcontext()


def _weigh_each(unet: UNet, scales: list[float], device: torch.device) -> None:
    """A scale for each picture of a batch, which guidance runs twice: without text, then with it."""
    from peft.tuners.lora import LoraLayer

    rows = torch.tensor(scales * 2, device=device)
    for name, layer in unet.named_modules():
        if isinstance(layer, LoraLayer):  # a factor per row: (B, 1) for the time, (B, 1, 1) for tokens, (B, 1, 1, 1) for maps
            linear = isinstance(layer.get_base_layer(), torch.nn.Linear)
            ones = (1,) if "time_emb" in name else (1, 1) if linear else (1, 1, 1)
            layer.set_scale(adapter.NAME, rows.view(-1, *ones))
