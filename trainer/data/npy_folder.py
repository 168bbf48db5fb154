"""A folder of `<category>.npy` drawings, QuickDraw's `numpy_bitmap` layout."""

from __future__ import annotations

import io
import re
import struct
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.lib import format as npy

from convert.errors import JobError, UsageError
from trainer.data.categories import ATTRIBUTION, QUICKDRAW
from trainer.data.records import ROW_BYTES, Dataset, Drawing, Example
from trainer.data.split import HELD_OUT_ROWS, choose_of_folder, choose_rows
from trainer.recipe import Recipe

TRIGGER = "a scribble of"
BUCKET_PREFIX = "full_numpy_bitmap_"  # browsers make this of the bucket's path when saving a file
AGAIN_DOWNLOADED = re.compile(r" ?\(\d+\)$")  # `apple (1).npy`: a browser's second download
AGAIN = "get the file again, or remove it"


def load_npy_folder(folder: Path, recipe: Recipe, *, attribution: str | None = None,
                    held_out_rows: int = HELD_OUT_ROWS) -> Dataset:  # fmt: skip
    """Drawings of `recipe.categories` from `folder`; captions "a scribble of <category>" (section 2.3).

    If the folder has fewer categories than the recipe's default number, which is for QuickDraw, all are used.
    attribution: None if it is unknown; then files that all have QuickDraw's names count as QuickDraw's.

    Raises:
        UsageError: a category is unknown, there are fewer than requested, or two files have the same category.
        JobError: a file is not a uint8 (N, 784) or (N, 1, 784) array.
    """
    files = categories_of(folder)
    bitmaps = {category: partial(open_bitmaps, file) for category, file in files.items()}
    dataset = load_drawings(bitmaps, recipe, place=str(folder), attribution=attribution or "", held_out_rows=held_out_rows)
    if attribution is None and set(files) <= set(QUICKDRAW):
        note = f"{folder} has QuickDraw's categories: the LoRA's metadata will name {ATTRIBUTION}"
        return replace(dataset, attribution=ATTRIBUTION, notes=[*dataset.notes, note])
    return dataset


def load_drawings(files: Mapping[str, Callable[[], np.ndarray]], recipe: Recipe, *, place: str, attribution: str,
                  held_out_rows: int) -> Dataset:  # fmt: skip
    """Drawings of `recipe.categories`. `files`: category -> a function that opens its rows, uint8 (N, 784) or (N, 28, 28).

    place: the source's name in notes. Raises UsageError as `load_npy_folder`, and errors of opening.
    """
    seen, unseen = choose_of_folder(recipe.categories, list(files), recipe.data_seed_used)
    train: list[Example] = []
    held_out: list[Example] = []
    few: dict[str, int] = {}
    for category in seen:
        bitmaps = files[category]()
        rows = choose_rows(category, len(bitmaps), recipe.per_category, recipe.data_seed_used, held_out_rows)
        if len(rows.train) < recipe.per_category:
            few[category] = len(rows.train)
        train += drawings(category, rows.train, bitmaps)
        held_out += drawings(category, rows.held_out, bitmaps)
    notes = [few_rows(few, recipe.per_category)] if few else []
    if recipe.categories.isdecimal() and len(seen) < int(recipe.categories):
        notes.append(f"{place} has {len(files)} categories, fewer than {recipe.categories}: all are used")
    return Dataset(train=train, held_out=held_out, trigger=TRIGGER, notes=notes, seen=seen, unseen=unseen,
                   attribution=attribution)


def npy_files(folder: Path) -> list[Path]:
    """The .npy files of `folder`, sorted, without hidden ones, such as macOS adds to archives (`._apple.npy`)."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".npy" and p.is_file() and not p.name.startswith("."))


def categories_of(folder: Path) -> dict[str, Path]:
    """The files by category: `alarm clock.npy`, `alarm%20clock.npy`, `alarm clock (1).npy` and
    `full_numpy_bitmap_alarm clock.npy` are the same one."""
    files: dict[str, Path] = {}
    for file in npy_files(folder):
        other = files.setdefault(AGAIN_DOWNLOADED.sub("", unquote(file.stem)).removeprefix(BUCKET_PREFIX), file)
        if other != file:
            raise UsageError(f"--data {folder}: {other.name} and {file.name} are the same category; remove one of them")
    return files


def open_bitmaps(path: Path) -> np.ndarray:
    """The rows of a file, uint8 (N, 784), memory-mapped. JobError if it has another type or is damaged."""
    try:
        with open(path, "rb") as file:
            head = file.read(LONGEST_HEADER)
        size = path.stat().st_size
        header_length(str(path), head, AGAIN)
        count, offset = parse_header(str(path), head, AGAIN)
        if size != offset + count * ROW_BYTES:
            raise JobError(f"{path}: is {size:,} bytes, but the {count:,} drawings in its header need "
                           f"{offset + count * ROW_BYTES:,}: the file is damaged or cut off: {AGAIN}")
        return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(count, ROW_BYTES))
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror or error}") from error


def drawings(category: str, rows: Iterable[int], bitmaps: np.ndarray) -> list[Drawing]:
    return [Drawing(bitmap=bitmaps[row].tobytes(), category=category, caption=f"{TRIGGER} {category}",
                    source=f"{category}.npy row {row}") for row in rows]


NAMED = 8
"""Most categories listed in a notice."""


def few_rows(few: Mapping[str, int], asked: int) -> str:
    """The notice about categories whose 70 % part has fewer drawings than requested; few: the number in each."""
    named = [f"{category} ({count})" for category, count in list(few.items())[:NAMED]]
    more = f" and {len(few) - NAMED} more ({min(few.values())} to {max(few.values())})" if len(few) > NAMED else ""
    return f"fewer than {asked} training drawings in {len(few)} categories, all are used: {', '.join(named)}{more}"


LONGEST_HEADER = 10_000  # bytes; numpy's own limit
MOST_ROWS = 10_000_000  # the largest official file has about 340,000


def header_length(name: str, head: bytes, advice: str) -> int:
    """Bytes up to the first row, from a file's first 12 bytes. name, advice: start and end of an error message."""
    if len(head) < 12 or not head.startswith(npy.MAGIC_PREFIX) or head[6] not in (1, 2, 3):
        found = "a web page" if head.lstrip().startswith(b"<") else "nothing" if not head else "something else"
        raise JobError(f"{name}: expected a .npy file, found {found}: {advice}")
    length = 10 + struct.unpack("<H", head[8:10])[0] if head[6] == 1 else 12 + struct.unpack("<I", head[8:12])[0]
    if length > LONGEST_HEADER:
        raise JobError(f"{name}: its .npy header is {length:,} bytes long, expected about 128: the file is damaged: {advice}")
    return length


def parse_header(name: str, head: bytes, advice: str) -> tuple[int, int]:
    """(rows, byte offset of the first) of a uint8 (N, 784) or (N, 1, 784) array in C order; JobError for any other.

    head: the whole header, or more of the file. Nothing is ever unpickled. numpy reads the header; version 3 is
    version 2 in UTF-8, the same for a header without field names.
    """
    file = io.BytesIO(head)
    try:
        read = npy.read_array_header_1_0 if npy.read_magic(file)[0] == 1 else npy.read_array_header_2_0
        shape, columns_first, dtype = read(file)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise JobError(f"{name}: its .npy header cannot be read ({reason}): the file is damaged: {advice}") from error
    row = (ROW_BYTES,) if len(shape) == 2 else (1, ROW_BYTES)
    if dtype != np.uint8 or shape[1:] != row or not 1 <= shape[0] <= MOST_ROWS or columns_first and shape[0] > 1:
        found = "pickled objects" if dtype.hasobject else f"{dtype} {shape}" + " by columns" * columns_first
        raise JobError(f"{name}: expected drawings as uint8 (N, {ROW_BYTES}), found {found}: {advice}")
    return int(shape[0]), file.tell()
