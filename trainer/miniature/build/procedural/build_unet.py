"""Stages `unet` and `unet-on` of the miniature's build: the noise predictor and the text encoder it listens to, together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel

from trainer.miniature.build.procedural import models
from trainer.miniature.build.procedural.build_vae import encode
from trainer.miniature.build.procedural.schedule import Progress, cosine, optimizer_step, seeded
from trainer.miniature.build.procedural.vocabulary import build_tokenizer
from trainer.miniature.build.procedural.world import Subject, caption

STEPS, BATCH, LEARNING_RATE = 3700, 48, 1.5e-3
FIRST, DECAY = 1250, 700  # steps of the first cosine; of the last descent to zero
PLATEAU = 1e-3  # the learning rate between the two: such a plateau can be lengthened without starting again
MORE_STEPS, MORE_PLATEAU, MORE_DECAY = 800, 7e-4, 300  # of `unet-on`
SNR_GAMMA = 5.0  # min-SNR weighting (Hang et al. 2023): without it these few steps go to the easy timesteps
KEEP_EVERY = 100


@dataclass
class Stage:
    """A stretch of training; a stopped one goes on from `kept`."""

    unet: Any
    text: Any
    kept: Path
    steps: int
    rate: Callable[[int], float]
    words: int
    """key of the captions' draws"""


def train_unet(pictures: np.ndarray, subjects: list[Subject], folder: Path) -> None:
    """Write `folder`/unet, text_encoder, tokenizer, scheduler."""
    generator, tokenizer = seeded(2), build_tokenizer(folder / "tokenizer")
    models.noise_scheduler().save_pretrained(folder / "scheduler")
    latents = _latents(pictures, folder)
    unet, text = models.unet().to(memory_format=torch.channels_last), models.text_encoder(tokenizer)
    _learn(Stage(unet, text, folder / "unet.pt", STEPS, learning_rate, 3), latents, subjects, folder, generator)


def lengthen(pictures: np.ndarray, subjects: list[Subject], folder: Path) -> None:
    """Go on from `folder`/unet and text_encoder, rounded to fp16 as they were first shipped, with a fresh optimizer."""
    generator, latents = seeded(5), _latents(pictures, folder)
    unet, text = (kind.from_pretrained(folder / name, torch_dtype=torch.float16).float().train()
                  for kind, name in ((UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder")))
    unet.to(memory_format=torch.channels_last)
    _learn(Stage(unet, text, folder / "unet-on.pt", MORE_STEPS, more_learning_rate, 6), latents, subjects, folder, generator)


def learning_rate(step: int) -> float:
    """A cosine over the first steps, then warm-up, plateau and a straight descent (Hägele et al. 2024)."""
    if step < FIRST:
        return LEARNING_RATE * cosine(step, FIRST, warmup=100)
    return PLATEAU * min((step - FIRST + 1) / 50, 1.0, (STEPS - step) / DECAY)


def more_learning_rate(step: int) -> float:
    return MORE_PLATEAU * min((step + 1) / 50, 1.0, (MORE_STEPS - step) / MORE_DECAY)


def _latents(pictures: np.ndarray, folder: Path) -> torch.Tensor:
    """(2 N, 4, 16, 16) float32: of the pictures, then of their mirror images."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    both = torch.cat([encode(vae, pictures), encode(vae, pictures[:, :, ::-1].copy())])
    return both * vae.config.scaling_factor


def _learn(stage: Stage, latents: torch.Tensor, subjects: list[Subject], folder: Path, generator: torch.Generator) -> None:
    unet, text, tokenizer, scheduler = stage.unet, stage.text, build_tokenizer(folder / "tokenizer"), models.noise_scheduler()
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-3)
    first = _restore(stage, optimizer, generator)
    progress = Progress("unet", stage.steps)
    for step in range(first, stage.steps):
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        words = np.random.default_rng([stage.words, step])
        x_0 = latents[rows]
        tokens = tokenizer([caption(subjects[r % len(subjects)], words) for r in rows.tolist()], padding="max_length",
                           truncation=True, return_tensors="pt").input_ids
        timesteps = torch.randint(1000, (BATCH,), generator=generator)
        eps = torch.randn(x_0.shape, generator=generator)
        x_t = scheduler.add_noise(x_0, eps, timesteps).contiguous(memory_format=torch.channels_last)
        predicted = unet(x_t, timesteps, text(tokens).last_hidden_state).sample
        snr = compute_snr(scheduler, timesteps)
        loss = ((predicted - eps).square().mean(dim=(1, 2, 3)) * snr.clamp(max=SNR_GAMMA) / snr).mean()
        optimizer_step(optimizer, loss, stage.rate(step))
        progress(step, loss)
        if (step + 1) % KEEP_EVERY == 0:
            _keep(stage, step + 1, optimizer, generator)
    unet.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")


def _keep(stage: Stage, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    state = {"step": step, "unet": stage.unet.state_dict(), "text": stage.text.state_dict(),
             "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
    torch.save(state, stage.kept.with_suffix(".part"))
    os.replace(stage.kept.with_suffix(".part"), stage.kept)


def _restore(stage: Stage, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
    """The step to go on from: 0 without a kept state."""
    if not stage.kept.exists():
        return 0
    state = torch.load(stage.kept, weights_only=True)
    stage.unet.load_state_dict(state["unet"])
    stage.text.load_state_dict(state["text"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return int(state["step"])
