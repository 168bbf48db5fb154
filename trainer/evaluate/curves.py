"""Means over pictures against the scale, with bootstrap intervals, and where a curve has its peak."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.rng import Stream

RESAMPLES = 2000
LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Curve:
    """mean, low, high: a number per scale, the mean over `n` pictures or prompts and the 95 % interval of that mean."""

    mean: list[float]
    low: list[float]
    high: list[float]
    n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Peak:
    """The scale of the highest mean; the interval in which 95 % of the resamples have theirs."""

    scale: float
    low: float
    high: float


def curve(values: np.ndarray, seed: int) -> Curve:
    """The curve of `values`, float (n, scales), with percentile bootstrap intervals over n (Efron 1979; none for n = 1)."""
    means = _resampled(values, seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Curve(_rounded(values.mean(axis=0)), _rounded(low), _rounded(high), len(values))


def peak(values: np.ndarray, scales: list[float], seed: int) -> Peak:
    """Where the mean of `values`, float (n, scales), is highest. Rows are resampled whole: scales share subject and noise."""
    best = np.array(scales)[_resampled(values, seed).argmax(axis=1)]
    low, high = np.quantile(best, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return Peak(scales[int(values.mean(axis=0).argmax())], float(low), float(high))


def without_level(values: np.ndarray) -> np.ndarray:
    """`values`, float (n, scales), with each row moved to the mean of all: so that intervals show what the scale does.

    For rows that lie at different levels for reasons of their own (Cousineau 2005). Means stay as they are.
    """
    return np.asarray(values - values.mean(axis=1, keepdims=True) + values.mean())


def by_name(values: np.ndarray, names: list[str]) -> np.ndarray:
    """The mean of the rows that share a name, (distinct names, ...): so that each prompt counts once."""
    return np.stack([values[[name == wanted for name in names]].mean(axis=0) for wanted in dict.fromkeys(names)])


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """(RESAMPLES, scales): means of n rows drawn with replacement."""
    rows = np.random.default_rng([seed, Stream.RESAMPLES]).integers(len(values), size=(RESAMPLES, len(values)))
    return values[rows].mean(axis=1)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
