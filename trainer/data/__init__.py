"""Training data: drawings or pictures, with captions, from wherever the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convert.errors import UsageError
from trainer.data.records import Dataset
from trainer.recipe import Recipe

DOODLES_PER_CATEGORY = 60


def load_dataset(recipe: Recipe, *, cache: Path, say: Callable[[str], None]) -> Dataset:
    """Read what `recipe.data` names; `cache` keeps downloads. UsageError and JobError name what is wrong with it."""
    if recipe.data == "quickdraw":
        from trainer.data.quickdraw import load_quickdraw

        return load_quickdraw(recipe, cache=cache, say=say)
    from trainer.data.npy_folder import load_npy_folder

    if recipe.data == "doodles":
        from trainer.miniature.doodles import write_doodles

        folder = cache / f"doodles-{recipe.seed}"
        write_doodles(folder, per_category=DOODLES_PER_CATEGORY, seed=recipe.seed)
        return load_npy_folder(folder, recipe)
    folder = Path(recipe.data).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--data {recipe.data}: there is no such folder; expected 'quickdraw', 'doodles' or a folder of "
                         ".npy drawings or pictures")
    if any(folder.glob("*.npy")):
        return load_npy_folder(folder, recipe)
    from trainer.data.pictures import load_pictures

    return load_pictures(folder, recipe)
