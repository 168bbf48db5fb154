"""A measure against the scale, as plain data for report.json: means, their intervals, and the differences from the base."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.evaluate.results import Curve, Interval, Numbers
from trainer.evaluate.statistics import by_category, interval


def curve(values: np.ndarray, names: Sequence[str], seed: int) -> Curve:
    """`values`, float (n, scales), of pictures whose categories are `names`; column 0 is the base.

    mean, low, high: numbers per scale; each category counts once. against_base: the same of (scale - base), paired by
    category. low and high are null below four categories. n: pictures; categories: how many.
    """
    means, distinct = by_category(values, names)
    difference = means - means[:, :1]
    return {**_ends(means, seed), "n": len(values), "categories": len(distinct), "against_base": _ends(difference, seed)}


def _ends(means: np.ndarray, seed: int) -> Interval:
    low, high = interval(means, seed)
    return {"mean": numbers(means.mean(axis=0)), "low": numbers(low), "high": numbers(high)}


def numbers(values: np.ndarray) -> Numbers:
    """Rounded to six decimals; NaN, which JSON does not have, becomes None."""
    return [round(float(value), 6) if math.isfinite(value) else None for value in values]
