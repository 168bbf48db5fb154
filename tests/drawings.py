"""Drawings for tests: real ones that ship with the miniature, each rotated a little so that no two are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.miniature import drawings

WORDS = ("apple", "butterfly", "car", "cloud", "cup", "fish", "flower", "house", "ice cream", "mushroom", "sailboat", "star",
         "sun", "tree", "umbrella", "clock")  # fmt: skip


def drawing(word: str, rng: np.random.Generator) -> np.ndarray:
    """One drawing of `word`: uint8 (28, 28), white strokes on black."""
    rows = drawings.drawings(word)
    image = Image.fromarray(rows[rng.integers(len(rows))])
    return np.asarray(image.rotate(rng.uniform(-8, 8), resample=Image.Resampling.BILINEAR))


def write_drawings(folder: Path, *, per_category: int, seed: int) -> None:
    """Write `<word>.npy`, uint8 (per_category, 784), for each of `WORDS` into `folder`: QuickDraw's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, word in enumerate(WORDS):
        rng = np.random.default_rng([seed, index])
        np.save(folder / f"{word}.npy", np.stack([drawing(word, rng).reshape(-1) for _ in range(per_category)]))
