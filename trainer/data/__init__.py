"""Training data: drawings or pictures, with captions, from wherever the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from convert.errors import UsageError
from trainer.data.records import Dataset
from trainer.data.split import HELD_OUT_ROWS, choose_categories, choose_of_folder
from trainer.recipe import Recipe, home

EXPECTED = "expected 'quickdraw', 'doodles', or a folder of .npy drawings or of pictures"


def check_data(recipe: Recipe) -> int | None:
    """Training pictures that `recipe` asks for, where they can be counted without reading any; None for a folder.

    Raises:
        UsageError: there is no such folder, address or category.
    """
    if recipe.data == "quickdraw":
        from trainer.data.categories import QUICKDRAW
        from trainer.data.quickdraw import checked_url

        checked_url(recipe.data_url)
        seen, _ = choose_categories(recipe.categories, list(QUICKDRAW), recipe.seed)
    elif recipe.data == "doodles":
        from trainer.miniature.shapes import CATEGORIES

        seen, _ = choose_of_folder(recipe.categories, list(CATEGORIES), recipe.seed)
    else:
        _check(home(recipe.data), recipe.data)
        return None
    return len(seen) * recipe.per_category


def load_dataset(recipe: Recipe, *, cache: Path, say: Callable[[str], None],
                 held_out_rows: int = HELD_OUT_ROWS) -> Dataset:  # fmt: skip
    """Read what `recipe.data` names; `cache` keeps downloads. `held_out_rows` of every category of drawings are held out.

    UsageError and JobError name what is wrong with the data.
    """
    if recipe.data == "quickdraw":
        from trainer.data.quickdraw import load_quickdraw

        return _told(load_quickdraw(recipe, cache=cache, say=say, held_out_rows=held_out_rows), recipe)
    from trainer.data.npy_folder import load_npy_folder, npy_files
    from trainer.data.pictures import SUFFIXES, load_pictures

    if recipe.data == "doodles":
        from trainer.data.made_up import doodles_folder

        folder = doodles_folder(recipe, cache)
        return _told(load_npy_folder(folder, recipe, attribution="", held_out_rows=held_out_rows), recipe)
    folder = home(recipe.data)
    _check(folder, recipe.data)
    if npy_files(folder):
        dataset = _told(load_npy_folder(folder, recipe, held_out_rows=held_out_rows), recipe)
        if beside := sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir()):
            dataset.notes.append(f"{folder} has .npy drawings, and they are learnt; {beside} pictures beside them are not")
        return dataset
    inner = sorted(place for place in folder.iterdir() if place.is_dir() and npy_files(place))
    if inner:
        raise UsageError(f"--data {recipe.data}: its drawings are in {inner[0].name}: give --data {inner[0]}")
    return load_pictures(folder, recipe)


def _check(folder: Path, given: str) -> None:
    if folder.is_file():
        hint = f"; give its folder, and --categories {folder.stem!r}" if folder.suffix.lower() == ".npy" else ""
        raise UsageError(f"--data {given}: is a file; {EXPECTED}{hint}")
    if not folder.is_dir():
        raise UsageError(f"--data {given}: there is no such folder; {EXPECTED}")


def _told(dataset: Dataset, recipe: Recipe) -> Dataset:
    """`dataset` of drawings, with a note where the recipe asks for what only own pictures have."""
    asked = [flag for flag, value in (("--trigger", recipe.trigger), ("--held-out", recipe.held_out)) if value]
    if not asked:
        return dataset
    note = f"not used: {' and '.join(asked)}, for own pictures; drawings are captioned '{dataset.trigger} …', 30 % are held out"
    return replace(dataset, notes=[*dataset.notes, note])
