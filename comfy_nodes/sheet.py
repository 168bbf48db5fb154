"""A labelled sheet of pictures: columns are scales, rows are the entries of the latent batch (the paper's figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import NodeError

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont
    from torch import Tensor

    Picture = NDArray[uint8]

INK, PAPER = (30, 30, 34), (255, 255, 255)

LARGEST_SIDE = 32768
"""Longest side of a sheet in pixels. JPEG and most viewers stop at 65,535."""


def as_uint8(image: Tensor) -> Picture:
    """A float tensor (H, W, 1, 3 or 4 channels) in [0, 1] -> uint8 (H, W, 3), rounded down as the host's Save Image does.

    Transparent areas become white.
    """
    image = image.detach().cpu().float().clamp(0, 1)
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + (1 - image[..., 3:])
    pixels: Picture = (image.expand(*image.shape[:2], 3) * 255).byte().numpy()
    return pixels


def draw(columns: Sequence[Sequence[Picture]], labels: Sequence[str], *, title: str = "") -> Image:
    """`columns` of uint8 pictures (H, W, 3) -> one RGB image. Pictures are not scaled; smaller ones are centred.

    Args:
        columns: lists of pictures, from top to bottom; a shorter one leaves empty cells.
        labels: one for each column, or an empty list.
        title: the text above the sheet; empty for none.

    Raises:
        NodeError: there are no pictures, the numbers of labels and columns differ, or the sheet would be too large.
    """
    from PIL import Image, ImageDraw

    if not any(columns):
        raise NodeError("images: there are none to lay out")
    if labels and len(labels) != len(columns):
        raise NodeError(
            f"labels: {len(labels)} for {len(columns)} columns of images: connect the sweep that made the images, or nothing"
        )
    height = max(picture.shape[0] for column in columns for picture in column)
    width = max(picture.shape[1] for column in columns for picture in column)
    rows = max(len(column) for column in columns)
    gap, size = max(4, width // 32), min(40, max(12, width // 12))
    heading = _font(size, labels, width)
    top = gap + (2 * size if title else 0) + (size + gap if any(labels) else 0)
    sheet_size = (gap + len(columns) * (width + gap), top + rows * (height + gap))
    title_font = _font(size, [title], sheet_size[0] - 2 * gap)
    if max(sheet_size) > LARGEST_SIDE:
        raise NodeError(f"images: the sheet would be {sheet_size[0]} x {sheet_size[1]} pixels: take fewer or smaller ones")
    sheet = Image.new("RGB", sheet_size, PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((gap, gap), title, fill=INK, font=title_font)
    for c, column in enumerate(columns):
        left = gap + c * (width + gap)
        if labels:
            wide = pen.textlength(labels[c], font=heading)
            pen.text((left + (width - wide) / 2, top - size - gap), labels[c], fill=INK, font=heading)
        for r, picture in enumerate(column):
            shift = ((width - picture.shape[1]) // 2, (height - picture.shape[0]) // 2)
            sheet.paste(Image.fromarray(picture), (left + shift[0], top + r * (height + gap) + shift[1]))
    return sheet


def _font(size: int, texts: Sequence[str], width: int) -> FreeTypeFont | ImageFont:
    """Pillow's built-in font, in a readable size at which no text is wider than `width` if possible."""
    from PIL import ImageFont

    try:
        for smaller in range(size, 9, -1):
            font = ImageFont.load_default(size=smaller)
            if all(font.getlength(text) <= width for text in texts):
                return font
        return ImageFont.load_default(size=9)
    except (TypeError, OSError):  # Pillow before 10.1, or built without FreeType: one bitmap size
        return ImageFont.load_default()
