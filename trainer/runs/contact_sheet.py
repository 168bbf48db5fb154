"""Figures 1 and 2 of the paper for any data: examples as found and as trained on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convert.errors import JobError, UsageError
from convert.files import atomic_path
from trainer.data.ours import MARK
from trainer.data.records import Dataset, Example
from trainer.rng import Stream

if TYPE_CHECKING:  # slow to load
    from matplotlib.figure import SubFigure

EXAMPLES, COLUMNS = 8, 4
LINE, LINES = 30, 3  # characters and lines of a label


def check_sheet(path: Path, *, overwrite: bool) -> None:
    """UsageError if the name does not end in .png, or the file exists and is not a contact sheet."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--contact-sheet {path}: expected a name ending in .png")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--contact-sheet {path}: expected a file in a folder that exists")
    if path.exists() and not overwrite and not _is_sheet(path):
        raise UsageError(f"--contact-sheet {path}: exists and is not a contact sheet: give another name or --overwrite")


def _is_sheet(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Description") == MARK
    except (OSError, SyntaxError, ValueError):
        return False


def choose_examples(dataset: Dataset, seed: int) -> list[Example]:
    """Up to eight training examples, drawn by the seed."""
    order = np.random.default_rng([seed, Stream.CONTACT_SHEET]).permutation(len(dataset.train))
    return [dataset.train[row] for row in order[:EXAMPLES]]


def write_contact_sheet(dataset: Dataset, path: Path, *, resolution: int, seed: int) -> None:
    """Write a PNG: at the top eight random examples as found, with their category; below, the same as trained on at
    `resolution`, each in its shape, with captions.

    Raises:
        JobError: there is nothing to show, a picture cannot be read, or `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    examples = choose_examples(dataset, seed)
    if not examples:
        raise JobError(f"{path}: there are no training pictures to show")
    columns = min(COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    figure = Figure(figsize=(max(2.4 * columns, 4.8), 2 * (2.9 * rows + 0.4)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    shapes = {example.shape(resolution) for example in examples}
    height, width = next(iter(shapes))
    side = f"{width}\N{MULTIPLICATION SIGN}{height}" if len(shapes) == 1 else f"in {len(shapes)} shapes"
    _draw(above, "As found", examples, rows, columns, lambda e: e.raw(), lambda e: e.category or e.source)
    _draw(below, f"As trained on, {side}", examples, rows, columns, lambda e: e.pixels(resolution),
          lambda e: e.caption or "(no caption)")
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", metadata={"Description": MARK})


def _draw(part: SubFigure, title: str, examples: list[Example], rows: int, columns: int,
          picture: Callable[[Example], np.ndarray], label: Callable[[Example], str]) -> None:  # fmt: skip
    part.suptitle(title, fontsize=11)
    cells = part.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    for cell, example in zip(cells, examples, strict=False):
        pixels = picture(example)
        cell.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if len(pixels) < 200 else "antialiased")
        cell.set_title(shorten(label(example)), fontsize=8, parse_math=False)


def shorten(text: str) -> str:
    """At most three lines of 30 characters, cut with an ellipsis."""
    return "\n".join(textwrap.wrap(text, LINE, max_lines=LINES, placeholder=" …"))
