"""Pictures in a style that the miniature was not trained on, to try presets with: real drawings in chalk on a green board.

  python -m tests.trainer.chalk DIR 20 10     20 pictures of 20 words, from the tenth word on

Each PNG, 128 x 128, has its caption beside it: "chalkboard star". The 60 words have a fixed order. Equal arguments make equal
files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from trainer.miniature.drawings import drawings, words

SIDE, DRAWN, LARGE = 128, 112, 4
"""Pixels of a picture and of the drawing on it, which is smoothed at `LARGE` times its size."""
BOARD, CHALK = np.array((34.0, 74.0, 58.0)), np.array((238.0, 240.0, 230.0))
TRIGGER = "chalkboard"


def chalk(drawing: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """The picture of a drawing, uint8 (28, 28), white strokes on black."""
    large = Image.fromarray(drawing).resize((DRAWN * LARGE, DRAWN * LARGE), Image.Resampling.BICUBIC)
    soft = np.asarray(large.filter(ImageFilter.GaussianBlur(6)).resize((DRAWN, DRAWN), Image.Resampling.BOX))
    stroke = np.pad(((soft / 255 - 0.3) / 0.25).clip(0, 1), (SIDE - DRAWN) // 2)
    grain = rng.uniform(0.45, 1.0, (SIDE, SIDE))  # the board shows through
    wiped = Image.fromarray(rng.uniform(0, 255, (6, 6)).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    board = BOARD + (np.asarray(wiped)[..., None] / 255 - 0.5) * 26
    share = (stroke * grain)[..., None]
    return Image.fromarray((board * (1 - share) + CHALK * share).clip(0, 255).astype(np.uint8))


def write(folder: Path, count: int, first: int = 0) -> None:
    """Write `count` pictures with their captions, starting with word number `first`."""
    order = [str(word) for word in np.random.default_rng(0).permutation(words())]
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(first, first + count):
        path = folder / f"{k:03d}.png"
        chalk(drawings(order[k])[0], np.random.default_rng(k)).save(path)
        path.with_suffix(".txt").write_text(f"{TRIGGER} {order[k]}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
