"""A labelled grid of pictures, rows by columns, like the paper's figure 5."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convert.files import atomic_path

INK, PAPER = (30, 30, 34), (255, 255, 255)
ROW_CHARACTERS = 22


def draw_grid(pictures: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str = "",
              cell: int = 192) -> Image.Image:  # fmt: skip
    """`pictures` uint8 (rows, columns, H, W, 3) -> one labelled image, each picture of `cell` x `cell` pixels' area; long rows
    wrap."""
    gap, size = max(4, cell // 32), max(12, cell // 11)
    wide, high = _fitted(pictures.shape[3], pictures.shape[2], cell)
    font = ImageFont.load_default(size=size)
    rows = ["\n".join(textwrap.wrap(row, ROW_CHARACTERS)) for row in rows]
    left = int(max(font.getlength(line) for row in rows for line in row.split("\n"))) + 2 * gap if any(rows) else gap
    top = (2 * size if title else gap) + (2 * size if any(columns) else gap)
    width, height = left + len(columns) * (wide + gap), top + len(rows) * (high + gap)
    sheet = Image.new("RGB", (max(width, int(font.getlength(title)) + 2 * gap), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, gap), title, fill=INK, font=font)
    for c, column in enumerate(columns):
        draw.text((left + c * (wide + gap) + wide / 2, top - gap), column, fill=INK, font=font, anchor="md")
    for r, row in enumerate(rows):
        y = top + r * (high + gap)
        draw.text((gap, y + high / 2), row, fill=INK, font=font, anchor="lm")
        for c in range(len(columns)):
            picture = Image.fromarray(pictures[r, c]).resize((wide, high), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + c * (wide + gap), y))
    return sheet


def _fitted(width: int, height: int, cell: int) -> tuple[int, int]:
    """Width and height with the picture's aspect ratio and about `cell` x `cell` pixels."""
    return round(cell * (width / height) ** 0.5), round(cell * (height / width) ** 0.5)


def write_png(image: Image.Image, path: Path) -> None:
    """Write `image` to `path` as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
