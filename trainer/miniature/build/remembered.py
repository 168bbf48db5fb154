"""Stage `remembered`: what the shipped miniature draws, beside the nearest picture that it learned from.

Five pictures a word are little: a network may remember them all. How near is near, two other distances tell: of a training
picture with another placing of the same icon, and with another set's icon of its word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.base.load import load_base
from trainer.miniature.build.icons import STYLES, Icons
from trainer.miniature.build.pictures import MILD, WORDS, compose, in_style
from trainer.recipe import MINIATURE, Recipe
from trainer.sample.sampler import Sampler
from trainer.training import devices

VIEWS, SMALL, COLUMNS, SEED = 4, 32, 10, 36
"""Placings of an icon; pixels at which pictures are compared; samples on the sheet."""


def draw_remembered(icons: Icons, path: Path) -> None:
    """Write a sheet to `path`, samples above and their nearest training pictures below; print mean distances.

    A distance is the root mean square over pixels of 32 x 32 and channels, of 255.
    """
    icons = icons.of(set(WORDS))
    rng = np.random.default_rng(SEED)
    pairs = zip(icons.rgba, icons.sets, strict=True)
    views = [compose([rgba], name, "", MILD, rng) for rgba, name in pairs for _ in range(VIEWS)]
    words, sets = np.repeat(icons.words, VIEWS), np.repeat(icons.sets, VIEWS)
    base = load_base(Recipe(base=MINIATURE), dtype=torch.float32, say=print)
    sampler = Sampler(base, devices.choose("cpu"))
    styles = list(dict.fromkeys(STYLES.values()))
    prompts = [in_style(styles[k % len(styles)], word) for k, word in enumerate(WORDS)]
    drawn = [picture for k, prompt in enumerate(prompts) for picture in sampler([prompt], [SEED + k], scale=0)]
    small = _small(views)
    away = _distances(_small(drawn), small)
    nearest = away.argmin(axis=1)
    print(f"samples: nearest training picture at {away.min(axis=1).mean():.0f}; it is of the same word in "
          f"{np.mean(words[nearest] == np.array(WORDS)):.0%}")
    between = _distances(small, small)
    word, same = words[:, None] == words[None], sets[:, None] == sets[None]
    np.fill_diagonal(between, np.inf)
    print(f"training pictures: the same icon placed anew at {np.where(word & same, between, np.inf).min(axis=1).mean():.0f}, "
          f"another set's icon of the word at {np.where(word & ~same, between, np.inf).min(axis=1).mean():.0f}, "
          f"of another word at {np.where(~word, between, np.inf).min(axis=1).mean():.0f}")
    shown = range(0, len(drawn), len(drawn) // COLUMNS)
    rows = [np.concatenate([some[k] for k in shown], axis=1) for some in (drawn, [views[k] for k in nearest])]
    Image.fromarray(np.concatenate(rows)).save(path)


def _small(pictures: list[np.ndarray]) -> np.ndarray:
    """float32 (N, 32 * 32 * 3) of uint8 pictures (H, W, 3)."""
    shrunk = [np.asarray(Image.fromarray(picture).resize((SMALL, SMALL), Image.Resampling.BOX)) for picture in pictures]
    return np.stack(shrunk).reshape(len(pictures), -1).astype(np.float32)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square differences (A, B) of rows."""
    return (torch.cdist(torch.from_numpy(a), torch.from_numpy(b)) / a.shape[1] ** 0.5).numpy()
