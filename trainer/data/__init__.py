"""Training data: drawings or pictures, with captions, from the sources named in the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from convert.errors import JobError, UsageError
from trainer.data.records import Dataset
from trainer.data.sources import sources
from trainer.data.split import HELD_OUT_ROWS, choose_categories, choose_of_folder
from trainer.recipe import Recipe

MOST_PROBLEMS = 20
EXPECTED = "expected 'quickdraw', 'doodles', or a folder of .npy drawings or of pictures"


def check_data(recipe: Recipe) -> int | None:
    """The number of training pictures in `recipe` if it is known without reading files; None for a folder.

    Raises:
        UsageError: there is no such folder, address or category.
    """
    if recipe.data == "quickdraw":
        from trainer.data.categories import QUICKDRAW
        from trainer.data.quickdraw import checked_url

        checked_url(recipe.data_url)
        seen, _ = choose_categories(recipe.categories, list(QUICKDRAW), recipe.data_seed_used)
    elif recipe.data == "doodles":
        from trainer.miniature.drawings import words

        seen, _ = choose_of_folder(recipe.categories, list(words()), recipe.data_seed_used)
    else:
        for source in sources(recipe):
            _check(source.folder, source.given)
        return None
    if recipe.more_data:
        raise UsageError(f"--data {recipe.data} and {', '.join(recipe.more_data)}: only folders of pictures can be combined")
    return len(seen) * recipe.per_category


def to_fetch(recipe: Recipe, cache: Path) -> list[str]:
    """The QuickDraw categories that training would download: those not completely in `cache`."""
    if recipe.data != "quickdraw":
        return []
    from trainer.data.quickdraw import lacking_categories

    return lacking_categories(recipe, cache=cache)


def load_dataset(recipe: Recipe, *, cache: Path, say: Callable[[str], None], held_out_rows: int = HELD_OUT_ROWS,
                 max_upscale: float = 1.25, keep_problems: bool = False) -> Dataset:  # fmt: skip
    """Read the data in `recipe.data`; downloads go to `cache`. `held_out_rows` of every category of drawings are held out.

    For pictures only the headers are read. keep_problems: do not raise for unusable files but list them in the result's
    `problems`. max_upscale: the table lists pictures that are enlarged more. Raises UsageError and JobError.
    """
    if recipe.data == "quickdraw":
        from trainer.data.quickdraw import load_quickdraw

        return _told(load_quickdraw(recipe, cache=cache, say=say, held_out_rows=held_out_rows), recipe)
    from trainer.data.images import SUFFIXES
    from trainer.data.npy_folder import load_npy_folder, npy_files
    from trainer.data.pictures import load_pictures

    if recipe.data == "doodles":
        from trainer.data.doodles import load_doodles

        return _told(load_doodles(recipe, held_out_rows=held_out_rows), recipe)
    given = sources(recipe)
    for source in given:
        _check(source.folder, source.given)
    folder = given[0].folder
    if len(given) == 1 and npy_files(folder):
        dataset = _told(load_npy_folder(folder, recipe, held_out_rows=held_out_rows), recipe)
        if beside := sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir()):
            dataset.notes.append(f"{folder} has .npy drawings, which are trained on; {beside} pictures beside them are not")
        return dataset
    inner = sorted(place for place in folder.iterdir() if place.is_dir() and os.access(place, os.R_OK | os.X_OK)
                   and npy_files(place))
    if inner:
        raise UsageError(f"--data {recipe.data}: its drawings are in the subfolder {inner[0].name}: give --data {inner[0]}")
    pictures = load_pictures(recipe, max_upscale=max_upscale)
    return pictures if keep_problems else refuse_problems(pictures)


def refuse_problems(dataset: Dataset) -> Dataset:
    """Return `dataset` if all its files can be used. Else raise a JobError that lists all problems."""
    problems = dataset.problems
    if not problems:
        return dataset
    if len(problems) == 1:
        raise JobError(problems[0])
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    raise JobError(f"{len(problems)} files cannot be used: {'; '.join(problems[:MOST_PROBLEMS])}{more}")


def _check(folder: Path, given: str) -> None:
    if folder.is_file():
        hint = f"; give its folder, and --categories {folder.stem!r}" if folder.suffix.lower() == ".npy" else ""
        raise UsageError(f"--data {given}: is a file; {EXPECTED}{hint}")
    if not folder.is_dir():
        raise UsageError(f"--data {given}: there is no such folder; {EXPECTED}")


def _told(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Add a note to a `dataset` of drawings if the recipe has settings that only apply to pictures."""
    asked = [flag for flag, value in (("--trigger", recipe.trigger), ("--held-out", recipe.held_out)) if value]
    if not asked:
        return dataset
    note = f"not used: {' and '.join(asked)}, for pictures; drawings have captions '{dataset.trigger} …', 30 % are held out"
    return replace(dataset, notes=[*dataset.notes, note])
