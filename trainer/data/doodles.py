"""`--data doodles`: real drawings of the words that the embedded miniature can draw, included in the package."""

from __future__ import annotations

from functools import partial

from trainer.data.categories import ATTRIBUTION
from trainer.data.npy_folder import load_drawings
from trainer.data.records import Dataset
from trainer.data.split import HELD_OUT_ROWS
from trainer.miniature import drawings
from trainer.recipe import Recipe


def load_doodles(recipe: Recipe, *, held_out_rows: int = HELD_OUT_ROWS) -> Dataset:
    """Drawings of `recipe.categories`, about 20 of each. Raises UsageError as `load_drawings` does."""
    bitmaps = {word: partial(drawings.drawings, word) for word in drawings.words()}
    return load_drawings(bitmaps, recipe, place="doodles", attribution=ATTRIBUTION, held_out_rows=held_out_rows)
