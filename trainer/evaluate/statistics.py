"""Intervals and rules behind a report's numbers. Pure numpy; each method cites its source.

The unit is the category, or the caption for a user's own pictures: pictures of one category resemble each other, so twenty
pictures of five categories are closer to five observations than to twenty. Every function takes category means, float
(K categories, S scales), where a category's scales are paired: they share prompts, seeds and noise.

Intervals need `FEWEST` categories; below `MANY` they are Student's, from there on bootstrapped. The bootstrap resamples
categories whole: drawing pictures within them as well counts the spread within a category twice (Davison & Hinkley 1997,
section 3.8), and covers 99 % instead of 95 % (tests/evaluate/simulated_coverage.py measures both).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

FEWEST, MANY = 4, 20  # categories
LEVEL = 0.95
RESAMPLES = 2000


def by_category(values: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Means (K, ...) of the rows of `values`, float (n, ...), that share a name, and the K names in order."""
    distinct = list(dict.fromkeys(names))
    rows = np.array([distinct.index(name) for name in names])
    return np.stack([values[rows == k].mean(axis=0) for k in range(len(distinct))]), distinct


def standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the means over axis 0, (S,); NaN for a single row."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(values.std(axis=0, ddof=1) / math.sqrt(len(values)))


def interval(values: np.ndarray, seed: int, *, together: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends, (S,) each, of the 95 % intervals of the means of `values`, float (K, S); NaN below `FEWEST`.

    together: all S intervals hold simultaneously with 95 %, not each individually.
    """
    if len(values) < FEWEST:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    half = standard_error(values) * _critical(values, seed, together)
    mean = values.mean(axis=0)
    return mean - half, mean + half


def _critical(values: np.ndarray, seed: int, together: bool) -> np.ndarray | float:
    """The half-width of an interval in standard errors.

    Below `MANY` rows: Student's t; together: with Bonferroni's correction (Dunn 1961), which needs no estimate of the
    correlations that so few rows could not give. From `MANY` on: the symmetric bootstrap-t (Hall 1988); together: balanced
    (Beran 1988), each scale at the same quantile of its own |t|, so that one with heavy tails does not widen the others.
    """
    count, scales = values.shape
    if count < MANY:
        return student_t(1 - (1 - LEVEL) / 2 / (scales if together else 1), count - 1)
    deviations = values - values.mean(axis=0)
    drawn = _resamples(count, seed)
    means = drawn @ deviations / count
    variances = np.maximum(drawn @ deviations**2 / count - means**2, 0) * count / (count - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(np.abs(means) / np.sqrt(variances / count), nan=0.0)
    if not together:
        return np.asarray(np.quantile(t, LEVEL, axis=0))
    shares = (t.argsort(axis=0).argsort(axis=0) + 1) / len(t)  # of each scale's own distribution
    level = np.quantile(shares.max(axis=1), LEVEL)
    return np.asarray(np.quantile(t, level, axis=0))


@lru_cache(maxsize=8)
def _resamples(count: int, seed: int) -> np.ndarray:
    """How often each of `count` rows is drawn, float (RESAMPLES, count): bootstrap samples (Efron 1979)."""
    generator = np.random.default_rng([seed, count])
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)


def student_t(p: float, freedom: int) -> float:
    """The quantile `p` > 0.5 of Student's t with whole degrees of freedom, by bisection of its distribution function."""
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, freedom) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _between(t: float, freedom: int) -> float:
    """P(|T| < t): Abramowitz & Stegun 1964, 26.7.3 (odd) and 26.7.4 (even)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + sine * total * (freedom > 1))
    return sine * total


def equals(values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The `allowed` columns, bool (S,), that are as good as the best of them: the one-standard-error rule.

    A column is equal if it falls short of the best by at most one standard error of their paired difference (Breiman,
    Friedman, Olshen & Stone 1984, section 3.4.3, who take the best's own error: ours are paired). At least one must be allowed.
    """
    best = int(np.where(allowed, values.mean(axis=0), -np.inf).argmax())
    short = values[:, [best]] - values
    return np.asarray(allowed & (short.mean(axis=0) <= standard_error(short)))


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and 95 % interval, (S,) each, of a `statistic` of which of `count` categories to use, a bool (count,).

    For statistics that are not means, such as a distance between two sets: delete one category at a time (Tukey 1958; for
    U-statistics Arvesen 1969) and take Student's t. Low and high are NaN below `FEWEST`.
    """
    estimate = np.asarray(statistic(np.ones(count, dtype=bool)))
    if count < FEWEST:
        return estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    without = np.stack([statistic(np.arange(count) != k) for k in range(count)])
    spread = np.sqrt((count - 1) / count * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    half = spread * student_t(1 - (1 - LEVEL) / 2, count - 1)
    return estimate, estimate - half, estimate + half


def mmd(ours: np.ndarray, real: np.ndarray, sigma: float = 10.0) -> float:
    """CMMD: 1000 times the squared maximum mean discrepancy of two sets of unit features, (N, W) and (M, W).

    The Gaussian kernel, sigma and factor are those of Jayasumana et al. 2024; the estimate is the unbiased one (Gretton et
    al. 2012, equation 3), which small sets need: it is 0 in the mean for equal distributions, and may be below.
    """
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
        return np.exp(-squared / (2 * sigma**2))

    n, m = len(ours), len(real)
    within = [(k.sum() - np.trace(k)) / (c * (c - 1)) for k, c in ((kernel(ours, ours), n), (kernel(real, real), m))]
    return float(1000 * (within[0] + within[1] - 2 * kernel(ours, real).mean()))
