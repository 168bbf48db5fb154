"""Scales: chooses the one a node uses, and parses the list of a sweep."""

from __future__ import annotations

import math
import re

from .errors import NodeError

LIMIT = 10.0
"""The largest absolute scale. The page's slider ends at -2 and 2; the API, a link or the keyboard can go beyond."""

MAX_SCALES = 64
"""Most scales in a sweep; each is a whole sampling run."""

_HINT = "write numbers with commas between, like 0, 0.5, 1, or start:stop:step, like 0:1:0.25"


def checked(name: str, value: float) -> float:
    """`value`, if it is a number from -10 to 10. Raises `NodeError` that begins with `name`."""
    if not (math.isfinite(value) and abs(value) <= LIMIT):
        raise NodeError(f"{name}: is {value:g}; it must be from {-LIMIT:g} to {LIMIT:g}: 0 is the base, 1 the full LoRA")
    return value


def used(scale: float, clip_scale: float | None, recommended: float | None) -> tuple[float, float]:
    """The scales of the UNet part and of the text encoder part.

    Args:
        clip_scale: None to use `scale`.
        recommended: the file's recommended scale, which replaces both; None if it has none, or the toggle is off.

    Raises:
        NodeError: one of them is not a number from -10 to 10.
    """
    if recommended is not None:
        recommended = checked("recommended scale of this file", recommended)
        return recommended, recommended
    scale = checked("scale", scale)
    return scale, scale if clip_scale is None else checked("clip_scale", clip_scale)


def parse(text: str) -> list[float]:
    """The scales of `0, 0.5, 1` or `0:1:0.25` (start:stop:step, stop included; `/` works too) or a mix, in order.

    Raises `NodeError` if one is not a number from -10 to 10, a step leads away from the stop, or the number of
    scales is 0 or above `MAX_SCALES`.
    """
    scales: list[float] = []
    for piece in filter(None, (piece.strip() for piece in re.split(r"[,;\n]", text))):
        numbers = [_number(number) for number in re.split(r"[:/]", piece)]
        if len(numbers) not in (1, 3):
            raise NodeError(f"scales: '{piece}' is not a number or start:stop:step: {_HINT}")
        scales += numbers if len(numbers) == 1 else _steps(piece, *numbers)
        if len(scales) > MAX_SCALES:
            raise NodeError(f"scales: there are more than {MAX_SCALES}, and each is a whole sampling run: take fewer")
    if not scales:
        raise NodeError(f"scales: is empty: {_HINT}")
    return [checked("scales", scale) for scale in scales]


def label(scale: float) -> str:
    """The label above a column of the sheet."""
    return f"scale {scale:g}"


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise NodeError(f"scales: '{text.strip()}' is not a number: {_HINT}")
    return value


def _steps(piece: str, start: float, stop: float, step: float) -> list[float]:
    if step == 0 or (stop - start) / step < 0:
        raise NodeError(f"scales: '{piece}' never gets from {start:g} to {stop:g} in steps of {step:g}")
    count = (stop - start) / step
    if count > MAX_SCALES:
        raise NodeError(f"scales: '{piece}' is more than {MAX_SCALES} scales, each a whole sampling run: take a larger step")
    last = math.floor(count + 1e-6)  # 0:1:0.1 includes 1, although 10 * 0.1 < 1 in binary
    return [round(start + step * index, 6) for index in range(last + 1)]
