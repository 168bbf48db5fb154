"""A folder of `<category>.npy` drawings, QuickDraw's `numpy_bitmap` layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from convert.errors import JobError
from trainer.data.choice import choose_categories, choose_rows
from trainer.data.drawings import ROW_BYTES
from trainer.data.records import Dataset, Drawing, Example
from trainer.recipe import Recipe

TRIGGER = "a scribble of"


def load_npy_folder(folder: Path, recipe: Recipe, *, attribution: str = "") -> Dataset:
    """Drawings of `recipe.categories` from `folder`; captions "a scribble of <category>" (section 2.3).

    Raises:
        UsageError: a category is unknown, or more are asked for than there are.
        JobError: a file is no uint8 (N, 784) or (N, 1, 784) array.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    default = recipe.categories == Recipe.__dataclass_fields__["categories"].default
    wanted = str(min(len(files), int(recipe.categories))) if default else recipe.categories
    seen, unseen = choose_categories(wanted, list(files), recipe.seed)
    train: list[Example] = []
    held_out: list[Example] = []
    few: list[str] = []
    for category in seen:
        bitmaps = open_bitmaps(files[category])
        rows = choose_rows(category, len(bitmaps), recipe.per_category, recipe.seed)
        if len(rows.train) < recipe.per_category:
            few.append(f"{category} ({len(rows.train)})")
        train += drawings(category, files[category].name, rows.train, bitmaps)
        held_out += drawings(category, files[category].name, rows.held_out, bitmaps)
    notes = [few_rows(few, recipe.per_category)] if few else []
    if default and len(files) < int(recipe.categories):
        notes.append(f"{folder} has {len(files)} categories, fewer than {recipe.categories}: all are trained on")
    return Dataset(train=train, held_out=held_out, trigger=TRIGGER, notes=notes, seen=seen, unseen=unseen,
                   attribution=attribution)


def open_bitmaps(path: Path) -> np.ndarray:
    """The rows of a file, uint8 (N, 784), left on disk. JobError where it is anything else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise JobError(f"{path}: is no sound .npy file ({error}): download it again") from error
    shape = getattr(array, "shape", ())
    if getattr(array, "dtype", None) != np.uint8 or shape[1:] not in ((ROW_BYTES,), (1, ROW_BYTES)) or not len(array):
        raise JobError(f"{path}: expected drawings as uint8 (N, {ROW_BYTES}), found {getattr(array, 'dtype', '?')} {shape}")
    return array.reshape(-1, ROW_BYTES)


def drawings(category: str, file: str, rows: Iterable[int], bitmaps: np.ndarray) -> list[Drawing]:
    return [Drawing(bitmap=bitmaps[row].tobytes(), category=category, caption=f"{TRIGGER} {category}",
                    source=f"{file} row {row}") for row in rows]


def few_rows(few: list[str], asked: int) -> str:
    """The notice for categories whose 70 % part has fewer drawings than asked."""
    shown = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
    return f"fewer than {asked} training drawings, all are used: {shown}"
