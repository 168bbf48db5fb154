"""Doodles of the miniature world: wobbly white strokes on black, 28 x 28, in QuickDraw's `numpy_bitmap` format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trainer.miniature.shapes import CATEGORIES, thing

SIDE = 28  # QuickDraw's bitmap side, pixels
_CANVAS = SIDE * 10
_STROKE = 1.75  # QuickDraw renders a 16-unit stroke on a 256-unit canvas: 1.75 of 28 pixels


def resample(points: np.ndarray, step: float = 0.06) -> np.ndarray:
    """`points` (N, 2) -> (M, 2), evenly spaced along the same line."""
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.linspace(0, lengths[-1], max(3, int(lengths[-1] / step)))
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


def wobble(points: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """`points` moved as a hand moves them: a smooth random walk of about `amount`, and a drift so ends rarely meet."""
    points = resample(points)
    steps = rng.normal(0, 1, (len(points), 2))
    kernel = np.hanning(min(11, len(points)) + 2)[1:-1]
    smooth = np.stack([np.convolve(steps[:, axis], kernel / np.sqrt((kernel**2).sum()), "same") for axis in (0, 1)], axis=1)
    drift = np.linspace(0, 1, len(points))[:, None] * rng.normal(0, 1.2 * amount, 2)
    return points + amount * smooth + drift + rng.normal(0, amount / 2, 2)


def doodle(category: str, rng: np.random.Generator) -> np.ndarray:
    """One drawing of `category`: uint8 (28, 28), white strokes on black, filling the frame as QuickDraw's do."""
    strokes = [wobble(part.points, rng, 0.03) for part in thing(category, rng) if part.drawn]
    everything = np.concatenate(strokes)
    low, high = everything.min(axis=0), everything.max(axis=0)
    room = _CANVAS - 2.2 * _STROKE * 10
    scale = room / (high - low).max()
    image = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(image)
    width = round(_STROKE * 10)
    for stroke in strokes:
        on_canvas = (stroke - (low + high) / 2) * scale + _CANVAS / 2
        draw.line([tuple(p) for p in on_canvas], fill=255, width=width, joint="curve")
        for x, y in (on_canvas[0], on_canvas[-1]):
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def write_doodles(folder: Path, *, per_category: int, seed: int) -> None:
    """Write `<category>.npy`, uint8 (per_category, 784), for every category into `folder`: the QuickDraw layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, category in enumerate(sorted(CATEGORIES)):
        rng = np.random.default_rng([seed, index])
        rows = np.stack([doodle(category, rng).reshape(-1) for _ in range(per_category)])
        np.save(folder / f"{category}.npy", rows)
