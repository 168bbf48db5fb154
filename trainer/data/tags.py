"""Shuffled tags: the variants of a caption that a run draws from.

Captions are encoded once, before training, so their orders are drawn once too: up to 32 per picture, depending only on the
seed and the caption.
"""

from __future__ import annotations

import hashlib

import numpy as np

from trainer.data.captions import holds, split_tags
from trainer.recipe import Recipe
from trainer.rng import Stream

MOST, FEWEST, IN_ALL = 32, 4, 4096
"""Most variants of a caption, and about how many over all pictures; each takes 118 KB as an embedding in half precision."""


def variants_each(pictures: int) -> int:
    return int(np.clip(IN_ALL // max(pictures, 1), FEWEST, MOST))


def variants(caption: str, recipe: Recipe, trigger: str, count: int) -> tuple[str, ...]:
    """`caption` with its tags shuffled and dropped as in the recipe, `count` times. Duplicates are kept, for their probability.

    The first `--keep-tokens` tags keep their place, and so does the first tag if it contains the trigger. These are never
    dropped, nor is any other tag with the trigger. At least one tag is always left.
    """
    tags = split_tags(caption)
    if not (recipe.shuffle_tags or recipe.tag_dropout) or len(tags) < 2:
        return (caption,)
    leading = 1 if trigger and holds(tags[0], trigger) else 0
    kept = max(recipe.keep_tokens, leading)
    fixed, free = tags[:kept], tags[kept:]
    key = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "little")
    rng = np.random.default_rng([recipe.seed, Stream.TAGS, key])
    made = []
    for _ in range(count):
        order = rng.permutation(len(free)) if recipe.shuffle_tags else np.arange(len(free))
        stays = rng.random(len(free)) >= recipe.tag_dropout
        chosen = [free[i] for i in order if stays[i] or (trigger and holds(free[i], trigger))]
        made.append(", ".join(fixed + chosen or free[:1]))
    return tuple(made)
