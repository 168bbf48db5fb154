"""Stage `decoder`: further training of the autoencoder's decoder only, so the latents do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from trainer.miniature.build.autoencoder import FALL, SIGMA, crops, picture_loss
from trainer.miniature.build.icons import Icons
from trainer.miniature.build.latents import SCALE
from trainer.miniature.build.sitting import Sitting

RATE, SEED = 1.5e-3, 34


def train_decoder(icons: Icons, work: Path, mirror: Path | None, steps: int) -> bool:
    """Train `work`/vae up to `steps` in total and save it there; returns whether the end was reached."""
    vae = AutoencoderKL.from_pretrained(work / "vae").to(memory_format=torch.channels_last)
    parts = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    average = [p.detach().clone() for p in parts.parameters()]
    optimizer = torch.optim.AdamW(parts.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    sitting, first = Sitting(work / "decoder.pt", mirror), 0
    if (state := sitting.load()) is not None:
        first, average = state["step"], state["average"]
        parts.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    losses: list[float] = []
    for step in range(first, steps):
        loss = _loss(vae, crops(icons, np.random.default_rng([SEED, step])), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100, (steps - step) / (FALL * steps))
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parts.parameters()], 1 - min(0.998, (step + 1) / (step + 20)))
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"decoder {step + 1}/{steps} loss {sum(losses) / len(losses):.4f}", flush=True)
            losses = []
        if sitting.due or step + 1 == steps:
            sitting.save({"step": step + 1, "model": parts.state_dict(), "average": average,
                          "optimizer": optimizer.state_dict()})
        if sitting.over:
            return False
    sitting.end()
    for p, mean in zip(parts.parameters(), average):
        p.data.copy_(mean)
    vae.save_pretrained(work / "vae")
    return True


def _loss(vae: AutoencoderKL, x: torch.Tensor, step: int) -> torch.Tensor:
    """The picture loss for latents with the posterior's noise."""
    draw = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
    return picture_loss(vae.decode(z + SIGMA / SCALE * torch.randn(z.shape, generator=draw)).sample, x)
