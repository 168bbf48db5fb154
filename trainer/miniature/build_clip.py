"""Stage `clip` of the miniature's build: the judge, an image/text pair trained by contrast (the paper's Algorithm 1).

Like the CLIPs that judge SD1.5, it has seen more than the base: doodles too, so it can tell one from another.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.drawings import process
from trainer.miniature import models
from trainer.miniature.build_vae import to_model
from trainer.miniature.doodles import doodle
from trainer.miniature.schedule import Progress, cosine, seeded
from trainer.miniature.shapes import CATEGORIES
from trainer.miniature.vocabulary import build_tokenizer
from trainer.miniature.world import Subject, caption

STEPS, BATCH, LEARNING_RATE = 700, 96, 1e-3
DOODLES = 1600
_LEADS = ("a scribble of", "a doodle of", "a drawing of", "a sketch of", "")


def train_clip(pictures: np.ndarray, subjects: list[Subject], folder: Path) -> None:
    """Write `folder`/clip: CLIPModel, its tokenizer and image processor."""
    generator = seeded(4)
    tokenizer = build_tokenizer(folder / "tokenizer")
    names = sorted(CATEGORIES)
    drawn = [names[i % len(names)] for i in range(DOODLES)]
    doodles = [process(doodle(name, np.random.default_rng([6, i])), models.PICTURE) for i, name in enumerate(drawn)]
    everything = np.concatenate([pictures, np.stack(doodles)])
    model = models.clip(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    progress = Progress("clip", STEPS)
    for step in range(STEPS):
        words = np.random.default_rng([7, step])
        rows = torch.randint(len(everything), (BATCH,), generator=generator).tolist()
        captions = [_words(row, subjects, drawn, words) for row in rows]
        flips = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        x = to_model(everything[rows])
        x = torch.where(flips, x.flip(-1), x)
        loss = contrastive_loss(model, x, tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt"))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(step, STEPS, warmup=50)
        optimizer.step()
        progress(step, loss)
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")


def contrastive_loss(model, x: torch.Tensor, tokens) -> torch.Tensor:
    """The paper's Algorithm 1: symmetric cross entropy over the scaled cosine similarities of all n x n pairs."""
    logits = model(pixel_values=x, **tokens).logits_per_image
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _words(row: int, subjects: list[Subject], drawn: list[str], rng: np.random.Generator) -> str:
    """A caption that says something: the world's own, or a doodle's."""
    if row >= len(subjects):
        return f"{rng.choice(_LEADS)} {drawn[row - len(subjects)]}".strip()
    while not (text := caption(subjects[row], rng)):
        continue
    return text
