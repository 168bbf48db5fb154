"""Stage `clip` of the miniature's build: the judge, an image/text pair trained by contrast (the paper's Algorithm 1).

The judge's training data, which limits what it can judge: the world's pictures (photos, icons, crayon,
silhouettes) with their captions; outlines of the same sixteen things in every ink, width and paper ("a line drawing of
...", black on white among them); and doodles made as QuickDraw's are, from other seeds than any training or held-out set
("a scribble of ..."). Like the CLIPs that judge SD1.5 it has thus seen more than the base, which never saw a doodle.
Half of its pictures have been through the VAE, as generated ones have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import CLIPImageProcessor

from trainer.data.records import process
from trainer.miniature.build.procedural import models
from trainer.miniature.build.procedural.build_vae import to_model
from trainer.miniature.build.procedural.schedule import Progress, cosine, optimizer_step, seeded
from trainer.miniature.build.procedural.vocabulary import build_tokenizer
from trainer.miniature.build.procedural.world import COLOURS, Subject, caption
from trainer.miniature.doodles import doodle, wobble
from trainer.miniature.shapes import CATEGORIES, thing

STEPS, BATCH, LEARNING_RATE = 1800, 64, 1e-3
DOODLES, OUTLINES = 3000, 3000
HELD_OUT = 400  # of the world's pictures, and as many doodles: only `check_clip` sees them
SIDE = models.PICTURE
_STROKES = ("a scribble of", "a doodle of", "a hand drawn scribble of", "")
_LINES = ("a line drawing of", "a drawing with lines of", "strokes of", "")


@dataclass(frozen=True)
class Seen:
    """One picture's words: the world's subject, or a lead for a drawn `category` in an ink."""

    category: str
    style: str
    colour: str = ""
    subject: Subject | None = None

    def words(self, rng: np.random.Generator) -> str:
        """A caption that says something, another choice at every call."""
        if self.subject:
            if self.style == "crayon" and rng.random() < 0.25:  # crayon is drawn with lines as well
                return f"{rng.choice(_LINES[:3])} {self.colour} {self.category}"
            while not (text := caption(self.subject, rng)):
                continue
            return text
        name = f"{self.colour} {self.category}" if self.colour and rng.random() < 0.6 else self.category
        return f"{rng.choice(_STROKES if self.style == 'doodle' else _LINES)} {name}".strip()


def outline(category: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """An outline drawing in any ink on any light paper, uint8 (64, 64, 3), and its colour word ("" for black)."""
    canvas = 4 * SIDE
    colour = "" if rng.random() < 0.4 else str(rng.choice(sorted(COLOURS)))
    ink = tuple(int(c) for c in np.clip(np.array(COLOURS.get(colour, (20, 20, 22))) + rng.normal(0, 8, 3), 0, 255))
    paper = (255, 255, 255) if rng.random() < 0.5 else tuple(int(c) for c in rng.integers(205, 256, 3))
    image = Image.new("RGB", (canvas, canvas), paper)
    draw, width, amount = ImageDraw.Draw(image), int(rng.integers(6, 18)), rng.uniform(0.005, 0.04)
    size = rng.uniform(0.6, 0.95) * canvas / 2
    centre = canvas / 2 + rng.uniform(-1, 1, 2) * (canvas / 2 - size) * 0.8
    for part in thing(category, rng):
        if part.drawn:
            line = wobble(part.points, rng, amount) * size + centre
            draw.line([tuple(p) for p in line], fill=ink, width=width, joint="curve")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)), colour


def everything_seen(pictures: np.ndarray, subjects: list[Subject]) -> tuple[np.ndarray, list[Seen]]:
    """uint8 (N, 64, 64, 3) and N records: the world, outlines, doodles."""
    names = sorted(CATEGORIES)
    drawn = [names[i % len(names)] for i in range(max(DOODLES, OUTLINES))]
    doodles = [process(doodle(name, np.random.default_rng([6, i])), SIDE) for i, name in enumerate(drawn[:DOODLES])]
    outlines = [outline(name, np.random.default_rng([8, i])) for i, name in enumerate(drawn[:OUTLINES])]
    seen = [Seen(s.category, s.style, s.colour, s) for s in subjects]
    seen += [Seen(name, "doodle") for name in drawn[:DOODLES]]
    seen += [Seen(name, "outline", colour) for name, (_, colour) in zip(drawn, outlines)]
    return np.concatenate([pictures, np.stack(doodles), np.stack([o for o, _ in outlines])]), seen


@torch.no_grad()
def through_vae(pictures: np.ndarray, vae: AutoencoderKL) -> np.ndarray:
    """What the base's VAE makes of `pictures`, uint8 (N, 64, 64, 3)."""
    parts = []
    for k in range(0, len(pictures), 64):
        x = vae.decode(vae.encode(to_model(pictures[k : k + 64])).latent_dist.mean).sample.clamp(-1, 1)
        parts.append(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move, scale, mirror, tint and grain (B, 3, 64, 64): generated pictures are never as clean as rendered ones."""
    count = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    zoom, mirror = uniform(0.9, 1.2), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * mirror, zoom, uniform(-0.12, 0.12, 2)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    x = torch.lerp(x, soft, uniform(0, 0.6, 1, 1, 1))
    x = x * uniform(0.85, 1.1, 1, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    return (x + uniform(0, 0.08, 1, 1, 1) * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def train_clip(pictures: np.ndarray, subjects: list[Subject], folder: Path) -> None:
    """Write `folder`/clip: CLIPModel, its tokenizer and image processor; print what `check_clip` finds."""
    generator = seeded(4)
    tokenizer = build_tokenizer(folder / "tokenizer")
    everything, seen = everything_seen(pictures[:-HELD_OUT], subjects[:-HELD_OUT])
    half = np.random.default_rng(10).permutation(len(everything))[::2]
    everything[half] = through_vae(everything[half], AutoencoderKL.from_pretrained(folder / "vae").eval())
    model = models.clip(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    progress = Progress("clip", STEPS)
    for step in range(STEPS):
        words = np.random.default_rng([7, step])
        rows = torch.randint(len(everything), (BATCH,), generator=generator).tolist()
        captions = [seen[row].words(words) for row in rows]
        loss = contrastive_loss(model, augment(to_model(everything[rows]), generator), captions, tokenizer)
        optimizer_step(optimizer, loss, LEARNING_RATE * cosine(step, STEPS, warmup=100))
        progress(step, loss)
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    image_processor().save_pretrained(folder / "clip")
    check_clip(model.eval(), tokenizer, pictures[-HELD_OUT:], subjects[-HELD_OUT:])


def image_processor() -> CLIPImageProcessor:
    """To 64 pixels and [-1, 1]: what the judge was trained on."""
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
                              image_mean=[0.5] * 3, image_std=[0.5] * 3)


def contrastive_loss(model, x: Tensor, captions: list[str], tokenizer) -> Tensor:
    """The paper's Algorithm 1: symmetric cross entropy over the scaled cosine similarities of all n x n pairs.

    Captions are few here and meet again within a batch: pictures of equal words share the label.
    """
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    logits = model(pixel_values=x, **tokens).logits_per_image
    same = torch.tensor([[float(a == b) for b in captions] for a in captions])
    labels = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@torch.no_grad()
def check_clip(model, tokenizer, pictures: np.ndarray, subjects: list[Subject]) -> dict[str, float]:
    """On pictures and doodles that training never saw: categories named rightly per style, and doodles' neighbours."""
    names = sorted(CATEGORIES)
    drawn = [names[i % len(names)] for i in range(len(subjects))]
    doodles = np.stack([process(doodle(n, np.random.default_rng([9, i])), SIDE) for i, n in enumerate(drawn)])
    images = F.normalize(model.get_image_features(pixel_values=to_model(np.concatenate([pictures, doodles]))).pooler_output)
    category = np.array([s.category for s in subjects] + drawn)
    style = np.array([s.style for s in subjects] + ["doodle"] * len(drawn))
    texts = tokenizer([f"a picture of {n}" for n in names] + [f"a scribble of {n}" for n in names], padding="max_length",
                      return_tensors="pt")  # fmt: skip
    cosines = images @ F.normalize(model.get_text_features(**texts).pooler_output).T
    half = cosines[:, : len(names)], cosines[:, len(names) :]
    named = np.array(names)[torch.stack(half).mean(dim=0).argmax(dim=1).numpy()] == category
    found = {f"named rightly, {s}": float(named[style == s].mean()) for s in dict.fromkeys(style)}
    likeness = (images @ images[style == "doodle"].T).numpy()
    same = category[:, None] == category[style == "doodle"][None]
    itself = likeness > 0.99999
    for s in dict.fromkeys(style):
        rows = style == s
        found[f"doodle to {s}, same category"] = float(likeness[rows][same[rows] & ~itself[rows]].mean())
        found[f"doodle to {s}, another category"] = float(likeness[rows][~same[rows]].mean())
        own = [half[1][row, names.index(category[row])] for row in np.where(rows)[0]]
        found[f"'a scribble of' its category, {s}"] = float(np.mean(own))
    for key, value in found.items():
        print(f"clip {key}: {value:.3f}", flush=True)
    return found
