"""Stages `vae` and `decoder` of the miniature's build: an autoencoder for the world's pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from trainer.miniature.build.procedural import models
from trainer.miniature.build.procedural.schedule import Progress, cosine, optimizer_step, seeded

STEPS, LEARNING_RATE = 1700, 2e-3
CROPPED = 1450  # steps on 32-pixel crops, four times cheaper; the last ones see whole pictures and settle the norms
CROP, BATCH = 32, 24
KL_WEIGHT = 1e-5  # keeps the latents near unit variance without blurring
DECODER_STEPS, DECODER_CROPPED, DECODER_RATE = 1000, 800, 1e-3
MOST_BLUR, MOST_NOISE = 0.7, 0.35  # what the noise predictor leaves of a line one latent wide; noise in units of their std


def to_model(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L1 on pixels plus L1 on their differences, so that thin strokes stay sharp."""
    across = F.l1_loss(x.diff(dim=-1), y.diff(dim=-1)) + F.l1_loss(x.diff(dim=-2), y.diff(dim=-2))
    return F.l1_loss(x, y) + across


def train_vae(pictures: np.ndarray, folder: Path) -> None:
    """`pictures` uint8 (N, 64, 64, 3) -> `folder`/vae in diffusers layout, scaling factor set to 1 / std of its latents."""
    generator = seeded(1)
    vae = models.vae()
    with torch.no_grad():  # start nearly noiseless (std 0.05): from std 1 the first thousand steps only unlearn the noise
        vae.quant_conv.bias[4:] = -6.0
        vae.quant_conv.weight[4:] *= 0.1
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    progress = Progress("vae", STEPS)
    for step in range(STEPS):
        x = to_model(_batch(pictures, generator, CROP if step < CROPPED else pictures.shape[1]))
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
        loss = reconstruction_loss(y, x) + KL_WEIGHT * posterior.kl().mean()
        optimizer_step(optimizer, loss, LEARNING_RATE * cosine(step, STEPS, warmup=50))
        progress(step, loss)
    vae.eval()
    latents = encode(vae, pictures[:512])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.save_pretrained(folder / "vae")


def train_decoder(pictures: np.ndarray, strokes: np.ndarray, folder: Path) -> None:
    """Train `folder`/vae's decoder again, on latents as a noise predictor leaves them: blurred and noisy.

    A doodle's line is one latent wide. Predicted a little too faint, it lies between black and white, where the first
    decoder puts green. The encoder, and with it every latent, stays as it is.

    pictures, strokes: uint8 (N, 64, 64, 3), half of every batch each.
    """
    generator = seeded(7)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16).float()
    learning = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    latents = torch.cat([encode(vae, pictures), encode(vae, strokes)])
    shown, spread = np.concatenate([pictures, strokes]), latents.std()
    optimizer = torch.optim.AdamW(learning, lr=DECODER_RATE, weight_decay=1e-4)
    progress = Progress("decoder", DECODER_STEPS)
    for step in range(DECODER_STEPS):
        rows = torch.cat([torch.randint(len(pictures), (BATCH // 2,), generator=generator),
                          torch.randint(len(pictures), len(shown), (BATCH // 2,), generator=generator)])
        blur, noise = (torch.rand(BATCH, 1, 1, 1, generator=generator) * most for most in (MOST_BLUR, MOST_NOISE * spread))
        z, x = _cut(latents[rows], shown[rows.numpy()], generator, CROP if step < DECODER_CROPPED else shown.shape[1])
        smooth = F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        z = torch.lerp(z, smooth, blur) + noise * torch.randn(z.shape, generator=generator)
        loss = reconstruction_loss(vae.decode(z).sample, to_model(x))
        optimizer_step(optimizer, loss, DECODER_RATE * cosine(step, DECODER_STEPS, warmup=50))
        progress(step, loss)
    vae.save_pretrained(folder / "vae")


def _cut(latents: torch.Tensor, pictures: np.ndarray, generator: torch.Generator,
         side: int) -> tuple[torch.Tensor, np.ndarray]:  # fmt: skip
    """The same square of both, `side` pixels wide, anywhere."""
    cell = pictures.shape[1] // latents.shape[2]  # pixels of a latent
    top, left = (int(torch.randint((pictures.shape[1] - side) // cell + 1, (1,), generator=generator)) for _ in range(2))
    latents = latents[:, :, top : top + side // cell, left : left + side // cell]
    return latents, pictures[:, top * cell : top * cell + side, left * cell : left * cell + side]


def _batch(pictures: np.ndarray, generator: torch.Generator, side: int) -> np.ndarray:
    rows = torch.randint(len(pictures), (BATCH,), generator=generator).tolist()
    top, left = (int(torch.randint(pictures.shape[1] - side + 1, (1,), generator=generator)) for _ in range(2))
    return pictures[rows, top : top + side, left : left + side]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N, 64, 64, 3) -> float32 (N, 4, 16, 16), the posterior's means, unscaled."""
    return torch.cat([vae.encode(to_model(pictures[k : k + 128])).latent_dist.mean for k in range(0, len(pictures), 128)])
