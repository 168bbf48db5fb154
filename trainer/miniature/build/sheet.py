"""Sheets of pictures that show the progress of the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from PIL import Image

from trainer.miniature.build.latents import SCALE
from trainer.miniature.build.pair import Pair
from trainer.miniature.build.prompts import Captions, padded

COLUMNS, STEPS, GUIDANCE = 10, 20, 5.0
ROWS = ("a photo of {0}", "a drawing of {0}", "an icon of {0}", "a silhouette of {0}", "{0}", "a drawing of {0} and {1}",
        "an icon of two {0}s")


@torch.no_grad()
def sample(pair: Pair, tokens: torch.Tensor, *, guidance: float = GUIDANCE, seed: int = 0, side: int = 16) -> torch.Tensor:
    """Latents (B, 4, side, side) by DPM++ 2M Karras in 20 steps, the hosts' default; the unguided half has the empty prompt."""
    scheduler = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                            use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(STEPS)
    empty = torch.tensor([padded([])] * len(tokens))
    states = pair.text(torch.cat([tokens, empty])).last_hidden_state
    x = torch.randn(len(tokens), 4, side, side, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        told, free = pair.unet(scheduler.scale_model_input(torch.cat([x, x]), t), t, states).sample.chunk(2)
        x = scheduler.step(free + guidance * (told - free), t, x).prev_sample
    return x


@torch.no_grad()
def draw_sheet(pair: Pair, work: Path, name: str, data: dict, captions: Captions) -> None:
    """Write `work`/`name`.png: ten training words in the four styles, without one, with another word, and twice.

    data: the loaded latents.pt; the pictures are as large as its first pool's.
    """
    words = data["words"][:: max(1, len(data["words"]) // COLUMNS)][:COLUMNS]
    others = [*words[1:], words[0]]
    tokens = torch.tensor([padded(captions.tokens(text.format(word, other)))
                           for text in ROWS for word, other in zip(words, others, strict=True)])
    side = data["pools"][0]["latents"].shape[-1]
    latents = torch.cat([sample(pair, part, seed=row, side=side) for row, part in enumerate(tokens.split(len(words)))])
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    pictures = vae.decode(latents / SCALE).sample.clamp(-1, 1).add(1).mul(127.5).byte().permute(0, 2, 3, 1).numpy()
    grid = pictures.reshape(len(ROWS), len(words), *pictures.shape[1:]).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(len(ROWS) * pictures.shape[1], -1, 3)
    Image.fromarray(np.ascontiguousarray(grid)).save(work / f"{name}.png")
