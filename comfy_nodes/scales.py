"""Scales: which one a node uses, and the sweep's list of them as people write it."""

from __future__ import annotations

import math
import re

from .errors import NodeError

LIMIT = 10.0
"""The largest scale either way. The page's slider goes from -2 to 2; more comes through the API, a link or the keyboard."""

MOST = 64
"""Scales in a sweep; each is a whole sampling run."""

_HINT = "write numbers with commas between, like 0, 0.5, 1, or start:stop:step, like 0:1:0.25"


def checked(name: str, value: float) -> float:
    """`value`, if it is a number from -10 to 10. Raises `NodeError` that begins with `name`."""
    if not (math.isfinite(value) and abs(value) <= LIMIT):
        raise NodeError(f"{name}: is {value:g}; it must be from {-LIMIT:g} to {LIMIT:g}: 0 is the base, 1 the full LoRA")
    return value


def used(scale: float, clip_scale: float | None, recommended: float | None) -> tuple[float, float]:
    """The scales of the UNet part and of the text encoder part.

    Args:
        clip_scale: None for the same as `scale`.
        recommended: the file's recommended scale, which replaces both; None if it has none or was not asked for.

    Raises:
        NodeError: one of them is not a number from -10 to 10.
    """
    if recommended is not None:
        recommended = checked("recommended scale of this file", recommended)
        return recommended, recommended
    scale = checked("scale", scale)
    return scale, scale if clip_scale is None else checked("clip_scale", clip_scale)


def parse(text: str) -> list[float]:
    """`0, 0.5, 1` or `0:1:0.25` (start:stop:step, the stop included; `/` does too), or both mixed. In that order.

    Raises `NodeError` if one is not a number from -10 to 10, a step leads away from the stop, or there is no scale at
    all or more than `MOST`.
    """
    scales: list[float] = []
    for piece in filter(None, (piece.strip() for piece in re.split(r"[,;\n]", text))):
        numbers = [_number(number) for number in re.split(r"[:/]", piece)]
        if len(numbers) not in (1, 3):
            raise NodeError(f"scales: '{piece}' is not a number or start:stop:step: {_HINT}")
        scales += numbers if len(numbers) == 1 else _steps(piece, *numbers)
        if len(scales) > MOST:
            raise NodeError(f"scales: there are more than {MOST}, and each is a whole sampling run: take fewer")
    if not scales:
        raise NodeError(f"scales: is empty: {_HINT}")
    return [checked("scales", scale) for scale in scales]


def label(scale: float) -> str:
    """The text over a column of the sheet."""
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
    if count > MOST:
        raise NodeError(f"scales: '{piece}' is more than {MOST} scales, and each is a whole sampling run: take a larger step")
    last = math.floor(count + 1e-6)  # 0:1:0.1 includes 1, although 10 * 0.1 < 1 in binary
    return [round(start + step * index, 6) for index in range(last + 1)]
