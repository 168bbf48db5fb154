"""Simulated coverage of the report's intervals: `python tests/evaluate/simulated_coverage.py`; the suite runs a short one.

Categories differ (a random effect), pictures within a category differ too, scales of a picture are correlated. The true value
is known, so the share of intervals that contain it can be counted.
"""

from __future__ import annotations

import sys

import numpy as np

from trainer.evaluate import recommend, statistics

SCALES = 10


def pictures(rng: np.random.Generator, categories: int, each: int, intraclass: float, along: float, skewed: bool) -> np.ndarray:
    """(categories, each, SCALES), mean 0, variance 1: `intraclass` of it between categories, `along` shared by scales."""
    def part(*shape: int) -> np.ndarray:
        shared = rng.normal(size=(*shape, 1))
        found = np.sqrt(along) * shared + np.sqrt(1 - along) * rng.normal(size=(*shape, SCALES))
        # a log-normal with the same mean and variance: ink distances are skewed like this
        return (np.exp(0.5 * found) - np.exp(0.125)) / np.sqrt((np.exp(0.25) - 1) * np.exp(0.25)) if skewed else found

    return np.sqrt(intraclass) * part(categories)[:, None] + np.sqrt(1 - intraclass) * part(categories, each)


def coverage(repeats: int, categories: int, *, each: int = 4, intraclass: float = 0.71, along: float = 0.8,
             skewed: bool = False, together: bool = False, seed: int = 0) -> float:  # fmt: skip
    """The share of intervals that contain the true value, 0; together: of repeats in which all of them do."""
    held = []
    for k in range(repeats):
        values = pictures(np.random.default_rng([seed, k]), categories, each, intraclass, along, skewed).mean(axis=1)
        low, high = statistics.interval(values, 0, together=together)
        inside = (low <= 0) & (high >= 0)
        held.append(inside.all() if together else inside.mean())
    return float(np.mean(held))


def two_stage(repeats: int, categories: int, *, each: int = 4, intraclass: float = 0.0, seed: int = 0) -> float:
    """Coverage of a method that is not used: percentiles over resampled categories with pictures resampled within them."""
    held = []
    for k in range(repeats):
        rng = np.random.default_rng([seed, k])
        values = pictures(rng, categories, each, intraclass, 0.8, False)[..., 0]
        chosen = rng.integers(categories, size=(1000, categories, 1))
        means = values[chosen, rng.integers(each, size=(1000, categories, each))].mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        held.append(low <= 0 <= high)
    return float(np.mean(held))


def recommended(repeats: int, categories: int, *, effect: float = 0.0, along: float = 0.0, seed: int = 0) -> float:
    """The share of LoRAs for which a scale is recommended. Without an `effect` each is noise and should get none.

    along: correlation of the noise of neighbouring scales; 0, the default, is the hardest, because there are ten tries.
    """
    scales = [round(0.1 * k, 1) for k in range(SCALES + 1)]
    found = 0
    for k in range(repeats):
        rng = np.random.default_rng([seed, k, 1])
        moved = pictures(rng, categories, 2, 0.3, along, False).mean(axis=1) + effect
        moved = np.concatenate([np.zeros((categories, 1)), moved], axis=1)
        style = 0.4 + 0.05 * rng.normal(size=(categories, 1)) + 0.01 * moved
        followed, own, copies = np.zeros_like(style), np.zeros(categories), np.zeros(SCALES + 1, bool)
        verdict = recommend.recommend(style, followed, own, copies, scales, seed=0)
        found += verdict["scale"] is not None
    return found / repeats


def main(repeats: int) -> None:
    print(f"{repeats} repeats, {SCALES} scales, 4 pictures of each category; wanted: 95 %\n")
    print("categories | intraclass | each interval | skewed | all at once | skewed")
    for categories in (5, 10, 20, 100):
        for intraclass in (0.0, 0.71):
            found = [coverage(repeats, categories, intraclass=intraclass, skewed=skewed, together=together)
                     for together in (False, True) for skewed in (False, True)]
            print(f"{categories:10} | {intraclass:10} | " + " | ".join(f"{100 * share:.1f} %" for share in found), flush=True)
    print(f"\ncategories and pictures both resampled, 100 categories, intraclass 0: {100 * two_stage(repeats, 100):.1f} %")
    for categories in (5, 10, 20, 100):
        shares = [100 * recommended(max(repeats, 400), categories, along=along) for along in (0.0, 0.8)]
        print(f"noise LoRAs recommended, {categories} categories: {shares[0]:.1f} %, {shares[1]:.1f} % with like scales")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
