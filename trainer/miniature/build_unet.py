"""Stage `unet` of the miniature's build: the noise predictor and the text encoder it listens to, trained together."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import compute_snr

from trainer.miniature import models
from trainer.miniature.build_vae import encode
from trainer.miniature.schedule import Progress, cosine, seeded
from trainer.miniature.vocabulary import build_tokenizer
from trainer.miniature.world import Subject, caption

STEPS, BATCH, LEARNING_RATE = 3700, 48, 1.5e-3
FIRST, DECAY = 1250, 700  # steps of the first cosine; of the last descent to zero
PLATEAU = 1e-3  # the learning rate between the two: such a plateau can be lengthened without starting again
SNR_GAMMA = 5.0  # min-SNR weighting (Hang et al. 2023): without it these few steps go to the easy timesteps
KEEP_EVERY = 100


def train_unet(pictures: np.ndarray, subjects: list[Subject], folder: Path) -> None:
    """Write `folder`/unet, text_encoder, tokenizer, scheduler. A stopped run goes on from its last kept state."""
    generator = seeded(2)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    latents = torch.cat([encode(vae, pictures), encode(vae, pictures[:, :, ::-1].copy())]) * vae.config.scaling_factor
    tokenizer, scheduler = build_tokenizer(folder / "tokenizer"), models.noise_scheduler()
    scheduler.save_pretrained(folder / "scheduler")
    unet, text = models.unet().to(memory_format=torch.channels_last), models.text_encoder(tokenizer)
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-3)
    first = _restore(folder / "unet.pt", unet, text, optimizer, generator)
    progress = Progress("unet", STEPS)
    for step in range(first, STEPS):
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        words = np.random.default_rng([3, step])
        x_0 = latents[rows]
        tokens = tokenizer([caption(subjects[r % len(subjects)], words) for r in rows.tolist()], padding="max_length",
                           truncation=True, return_tensors="pt").input_ids
        timesteps = torch.randint(1000, (BATCH,), generator=generator)
        eps = torch.randn(x_0.shape, generator=generator)
        x_t = scheduler.add_noise(x_0, eps, timesteps).contiguous(memory_format=torch.channels_last)
        predicted = unet(x_t, timesteps, text(tokens).last_hidden_state).sample
        snr = compute_snr(scheduler, timesteps)
        loss = ((predicted - eps).square().mean(dim=(1, 2, 3)) * snr.clamp(max=SNR_GAMMA) / snr).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        progress(step, loss)
        if (step + 1) % KEEP_EVERY == 0:
            _keep(folder / "unet.pt", step + 1, unet, text, optimizer, generator)
    unet.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")


def learning_rate(step: int) -> float:
    """A cosine over the first steps, then warm-up, plateau and a straight descent (Hägele et al. 2024)."""
    if step < FIRST:
        return LEARNING_RATE * cosine(step, FIRST, warmup=100)
    return PLATEAU * min((step - FIRST + 1) / 50, 1.0, (STEPS - step) / DECAY)


def _keep(path: Path, step: int, unet, text, optimizer, generator) -> None:
    state = {"step": step, "unet": unet.state_dict(), "text": text.state_dict(), "optimizer": optimizer.state_dict(),
             "generator": generator.get_state()}
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def _restore(path: Path, unet, text, optimizer, generator) -> int:
    """The step to go on from: 0 without a kept state."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    unet.load_state_dict(state["unet"])
    text.load_state_dict(state["text"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return state["step"]
