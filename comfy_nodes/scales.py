"""The sweep's list of scales, as people write it."""

from __future__ import annotations

import math
import re

from .errors import NodeError

MOST = 64
"""Each scale is a whole sampling run."""

_HINT = "write numbers with commas between, like 0, 0.5, 1, or start:stop:step, like 0:1:0.25"


def parse(text: str) -> list[float]:
    """`0, 0.5, 1` or `0:1:0.25` (start:stop:step, the stop included; `/` does too), or both mixed. In that order.

    Raises `NodeError` for what is no number, a step that never arrives, no scale at all or more than `MOST`.
    """
    scales: list[float] = []
    for piece in filter(None, (piece.strip() for piece in re.split(r"[,;\n]", text))):
        numbers = [_number(number) for number in re.split(r"[:/]", piece)]
        if len(numbers) not in (1, 3):
            raise NodeError(f"scales: '{piece}' is neither a number nor start:stop:step: {_HINT}")
        scales += numbers if len(numbers) == 1 else _steps(piece, *numbers)
        if len(scales) > MOST:
            raise NodeError(f"scales: these are more than {MOST}, and each is a whole sampling run: take fewer")
    if not scales:
        raise NodeError(f"scales: is empty: {_HINT}")
    return scales


def label(scale: float) -> str:
    """What stands over a column of the grid."""
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
        raise NodeError(f"scales: '{piece}' are more than {MOST}, and each is a whole sampling run: take a larger step")
    last = math.floor(count + 1e-6)  # 0:1:0.1 arrives at 1 although ten times 0.1 is not quite 1
    return [round(start + step * index, 6) for index in range(last + 1)]
