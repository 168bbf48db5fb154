"""The doodles of the miniature world, kept as a folder of .npy files: from there on they are read as QuickDraw's are."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shutil
import time
from pathlib import Path

from convert.errors import JobError
from convert.files import write_json
from convert.files.json_file import read_object
from trainer.data.split import TRAIN_SHARE
from trainer.miniature import doodles, shapes
from trainer.recipe import Recipe

SUMS = "sha256.json"
FEWEST_ROWS = 60  # drawings of a category, so that the parts do not change with a small --per-category


def doodles_folder(recipe: Recipe, cache: Path) -> Path:
    """A folder under `cache` of `<category>.npy`, made where it is missing: enough rows for `recipe.per_category`.

    Its name holds the seed, the rows and the drawing code's digest, so equal recipes have equal drawings whatever was
    made before. It appears whole: processes that start together do not see each other's halves.
    """
    rows = max(FEWEST_ROWS, math.ceil((recipe.per_category + 1) / TRAIN_SHARE))
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (doodles, shapes))
    folder = cache / f"doodles-{recipe.data_seed_used}-{rows}-{hashlib.sha256(code).hexdigest()[:12]}"
    if _sound(folder):
        return folder
    try:
        shutil.rmtree(folder, ignore_errors=True)  # damaged, if it is there: it is made again
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f".{folder.name}.*.part"):  # a killed command's: making takes seconds
            if time.time() - old.stat().st_mtime > 3600:
                shutil.rmtree(old, ignore_errors=True)
        making = cache / f".{folder.name}.{secrets.token_hex(4)}.part"
        making.mkdir()  # with the user's own mode: mkdtemp's would shut others out of a cache that they share
        try:
            doodles.write_doodles(making, per_category=rows, seed=recipe.data_seed_used)
            write_json(making / SUMS, _sums(making))
            _appear(making, folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise JobError(f"{folder}: cannot be written: {error.strerror or error}: give another --cache") from error
    return folder


def _sums(folder: Path) -> dict[str, str]:
    """sha256 of every drawing file by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.npy"))}


def _sound(folder: Path) -> bool:
    """Whether the folder is there with the very bytes that were written."""
    try:
        return read_object(folder / SUMS) == _sums(folder)
    except (OSError, JobError):
        return False


def _appear(making: Path, folder: Path) -> None:
    try:
        os.rename(making, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same drawings
            raise
