"""Real drawings of the miniature's words, from "The Quick, Draw! Dataset" by Google, Inc. (CC BY 4.0).

One compressed file, an entry a word: uint8 (N, 784), QuickDraw's `numpy_bitmap` rows, white strokes on black, 28 x 28.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trainer.miniature.shipped import DRAWINGS


@cache
def words() -> tuple[str, ...]:
    """The words that have drawings, in alphabetical order."""
    with np.load(DRAWINGS) as file:
        return tuple(sorted(file.files))


def drawings(word: str) -> np.ndarray:
    """uint8 (N, 28, 28), 10 to 33 of them. Raises KeyError for a word without drawings."""
    with np.load(DRAWINGS) as file:
        return file[word].reshape(-1, 28, 28)


def for_the_judge(count: int) -> np.ndarray:
    """bool (count,): the rows of a word's QuickDraw file that the judge learns from. It never sees the others, which ship."""
    return np.arange(count) % 3 == 2


def write_drawings(path: Path, source: Mapping[str, np.ndarray] | Path, chosen: Sequence[str]) -> None:
    """Pack those rows of `chosen` words that are not the judge's, from arrays or a folder of <word>.npy files.

    Equal input gives equal files.
    """
    rows: dict[str, Any] = {}
    for word in sorted(chosen):
        whole = np.load(source / f"{word}.npy") if isinstance(source, Path) else source[word]
        rows[word] = whole[~for_the_judge(len(whole))]
    np.savez_compressed(path, **rows)
