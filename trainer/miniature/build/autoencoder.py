"""Stage `vae`: Stable Diffusion's autoencoder (f = 8) at an eighth of its width, trained on 64-pixel crops.

The posterior's standard deviation is fixed (SIGMA, with latents kept at unit variance), so folding a scale into it later is
exact. Latents are kept smooth, which helps the denoiser: in some steps the decoder must turn downscaled latents into the
downscaled picture (Kouzelis et al. 2025, EQ-VAE).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from trainer.miniature.build.icons import Icons
from trainer.miniature.build.pictures import FULL, GROUNDS, SIDE, compose, strokes
from trainer.miniature.build.sitting import Sitting
from trainer.miniature.narrow import narrow_vae

CROP, BATCH, RATE, SEED = 64, 8, 2e-3, 31
FALL = 0.4
"""The last part of the steps, in which the rate falls linearly to zero."""

SIGMA = 0.08
"""Noise added to unit latents in training, so that denoiser errors of this size do not show."""


def train_vae(icons: Icons, work: Path, mirror: Path | None, steps: int) -> bool:
    """Train up to `steps` in total, resuming from the saved state; writes vae.pt with the averaged weights.

    Returns whether the end was reached.
    """
    torch.manual_seed(SEED)
    vae = narrow_vae().to(memory_format=torch.channels_last)
    average = [p.detach().clone() for p in vae.parameters()]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    sitting, first = Sitting(work / "vae.pt", mirror), 0
    if (state := sitting.load()) is not None:
        first = state["step"]
        _restore(vae, optimizer, average, state)
    losses: list[float] = []
    for step in range(first, steps):
        rate = RATE * min(1, (step + 1) / 100, (steps - step) / (FALL * steps))
        losses.append(_optimizer_step(vae, optimizer, rate, step, icons))
        kept = min(0.998, (step + 1) / (step + 20))
        torch._foreach_lerp_(average, [p.detach() for p in vae.parameters()], 1 - kept)
        if (step + 1) % 50 == 0:
            print(f"vae {step + 1}/{steps} loss {sum(losses) / len(losses):.4f}", flush=True)
            losses = []
        if sitting.due or step + 1 == steps:
            names = [name for name, _ in vae.named_parameters()]
            sitting.save({"step": step + 1, "model": vae.state_dict(), "optimizer": optimizer.state_dict(),
                          "average": dict(zip(names, average))})
        if sitting.over:
            return False
    sitting.end()
    return True


def _restore(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, average: list[torch.Tensor], state: dict[str, Any]) -> None:
    vae.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for mine, theirs in zip(average, state["average"].values()):
        mine.copy_(theirs)


def _optimizer_step(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, rate: float, step: int, icons: Icons) -> float:
    x = crops(icons, np.random.default_rng([SEED, step]))
    draw = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    z = vae.quant_conv(vae.encoder(x))[:, :4]
    held = 0.1 * (z.square().mean() - 1).square() + 0.6 * hidden_colour(z, x)
    loss = held + picture_loss(vae.decoder(vae.post_quant_conv(z + SIGMA * torch.randn(z.shape, generator=draw))), x)
    if step % 3 == 0:
        half = F.avg_pool2d(z, 2)
        half = half + SIGMA * torch.randn(half.shape, generator=draw)
        loss = loss + 0.5 * picture_loss(vae.decoder(vae.post_quant_conv(half)), F.avg_pool2d(x, 2))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss.item()


def picture_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, plus that of the gradients, which keeps edges sharp, and of the areas' mean colours."""
    apart = y - x
    slopes = apart.diff(dim=-1).abs().mean() + apart.diff(dim=-2).abs().mean()
    areas = F.avg_pool2d(apart, 8)
    hue = areas - areas.mean(1, keepdim=True)
    return apart.abs().mean() + apart.square().mean() + 0.5 * slopes + 4 * hue.square().mean()


def hidden_colour(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The share of the areas' colours (their differences from grey) that is not linear in the latents, 0 to 1.

    The linear function is a least-squares fit to the batch and is not learned. Without this loss the four channels encode
    mostly outlines, and red, brown and pink are decoded as the same colour.
    """
    areas = F.avg_pool2d(x, 8)
    hue = (areas - areas.mean(1, keepdim=True))[:, :2].permute(0, 2, 3, 1).reshape(-1, 2)
    hue = hue - hue.mean(0)
    flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
    flat = flat - flat.mean(0)
    best = torch.linalg.solve(flat.T @ flat + 1e-3 * len(flat) * torch.eye(4), flat.T @ hue)
    return (flat @ best - hue).square().mean() / (hue.square().mean() + 1e-3)


def crops(icons: Icons, rng: np.random.Generator) -> torch.Tensor:
    """float32 (BATCH, 3, CROP, CROP) in [-1, 1], channels last; one in eight is of strokes."""
    return torch.from_numpy(np.stack([_crop(_picture(icons, i, rng), rng) for i in range(BATCH)])).permute(
        0, 3, 1, 2).float().div_(127.5).sub_(1)


def _picture(icons: Icons, index: int, rng: np.random.Generator) -> np.ndarray:
    if index == 0:
        return strokes(rng)
    row = int(rng.integers(len(icons.words)))
    ground = str(rng.choice(list(GROUNDS))) if rng.random() < FULL.coloured else ""
    return compose([icons.rgba[row]], str(icons.sets[row]), ground, FULL, rng)


def _crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = (int(v) for v in (rng.uniform(0.1, 0.9, 2) * (SIDE - CROP)))
    return picture[y:y + CROP, x:x + CROP]
