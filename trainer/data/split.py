"""Chooses categories and drawings by the recipe's seed: section 2.1 of the paper.

"We randomly select 100 categories and split them into two subsets of 70% and 30% data respectively. Then in each
category, we randomly select 20 example images for training." The split is over all rows of a category's file.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass

import numpy as np

from convert.errors import UsageError
from trainer.recipe import Recipe
from trainer.rng import Stream

TRAIN_SHARE = 0.7
HELD_OUT_ROWS = 2
"""Drawings per category from the 30 % part on which the held-out loss is measured: enough for a steady mean of 200."""


def choose_categories(wanted: str, known: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Categories to train on and the other known ones, both sorted. `wanted`: a number, or names with commas.

    Raises:
        UsageError: a name is unknown, or there are fewer than `wanted`.
    """
    wanted = wanted.strip()
    if wanted.isdecimal():
        count = int(wanted)
        if not 1 <= count <= len(known):
            raise UsageError(f"--categories {count}: expected 1 to {len(known)}, as many as the data has")
        order = np.random.default_rng([seed, Stream.CATEGORIES]).permutation(len(known))
        seen = {sorted(known)[i] for i in order[:count]}
    else:
        names = {_plain(name): name for name in known}
        asked = [name.strip() for name in wanted.split(",") if name.strip()]
        if not asked:
            raise UsageError("--categories: expected a number or names with commas")
        for name in asked:
            if _plain(name) not in names:
                close = difflib.get_close_matches(_plain(name), names, n=3)
                hint = f"did you mean {', '.join(names[c] for c in close)}?" if close else f"there are {_some(known)}"
                raise UsageError(f"--categories {name!r}: no such category; {hint}")
        seen = {names[_plain(name)] for name in asked}
    return sorted(seen), sorted(set(known) - seen)


def choose_of_folder(wanted: str, known: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Like `choose_categories`, but the default number, which is for QuickDraw, takes all if there are fewer."""
    default = Recipe.__dataclass_fields__["categories"].default
    return choose_categories(str(min(len(known), int(default))) if wanted == default else wanted, known, seed)


def _plain(name: str) -> str:
    """A category's name normalised for comparison: no case, spaces for `_`."""
    return " ".join(name.replace("_", " ").lower().split())


def _some(names: list[str], most: int = 10) -> str:
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Rows:
    """Row numbers in one category's file. train: from its 70 % part; held_out: from its 30 % part."""

    train: list[int]
    held_out: list[int]


def choose_rows(category: str, count: int, per_category: int, seed: int, held_out: int = HELD_OUT_ROWS) -> Rows:
    """Choose among `count` rows, or all of a part that has fewer. Depends only on seed and category.

    A larger choice starts with the rows of a smaller one.
    """
    key = int.from_bytes(hashlib.sha256(category.encode()).digest()[:8], "little")
    order = np.random.default_rng([seed, Stream.ROWS, key]).permutation(count)
    border = max(1, round(TRAIN_SHARE * count))
    return Rows(order[:border][:per_category].tolist(), order[border:][:held_out].tolist())
