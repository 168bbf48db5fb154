"""Detects LoRAs that reproduce training pictures: nearest training pictures, and diversity over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from torch import Tensor

from trainer.evaluate.curves import curve
from trainer.evaluate.results import Curve, Nearest, Report
from trainer.evaluate.statistics import by_category, interval

COLLAPSED = 0.5
"""Share of the real pictures' own diversity below which a report warns."""


def nearest(features: Tensor, others: Tensor, count: int) -> np.ndarray:
    """The expected largest cosine, (...,), of unit features (..., W) with `count` of `others`, (N, W), drawn at random.

    This makes sets of different sizes comparable, because the nearest of twenty is nearer than the nearest of ten.
    """
    cosines = np.sort((features @ others.T).double().numpy(), axis=-1)[..., ::-1]
    total = cosines.shape[-1]
    chances = [comb(total - k - 1, count - 1) / comb(total, count) for k in range(total)]  # that the k-th is the largest
    return np.asarray(cosines @ np.array(chances))


def copying(drawn: Tensor, names: Sequence[str], train: dict[str, Tensor], held_out: dict[str, Tensor],
            seed: int) -> Nearest:  # fmt: skip
    """Whether pictures are copies of training pictures: a three-sample test as in Meehan, Chaudhuri & Dasgupta 2020.

    drawn: unit features (n, scales, W) of pictures; names: their categories. train, held_out: features by category.

    Returns `curve`'s fields of the cosine with the nearest training picture, and
    drawings: the same mean of the held-out pictures.
    copies: for each scale, whether the pictures are nearer to training pictures than held-out pictures are, and nearer to
    training pictures than to as many held-out ones, both beyond the 95 % interval over categories. The second condition is
    needed because a LoRA's pictures are nearer to all drawings than a real drawing with its irregularities.
    """
    closest, excess = [], []
    for row, name in zip(drawn, names, strict=True):
        count = min(len(train[name]), len(held_out[name]))
        closest.append(nearest(row, train[name], len(train[name])))
        excess.append(nearest(row, train[name], count) - nearest(row, held_out[name], count))
    means, distinct = by_category(np.stack(closest), names)
    real = np.array([nearest(held_out[name], train[name], len(train[name])).mean() for name in distinct])
    nearer, _ = interval(means - real[:, None], seed)
    beyond, _ = interval(by_category(np.stack(excess), names)[0], seed)
    copies = [bool(a > 0 and b > 0) for a, b in zip(nearer, beyond, strict=True)]
    return {**curve(np.stack(closest), names, seed), "drawings": round(float(real.mean()), 6), "copies": copies}


def diversity(drawn: Tensor, prompts: Sequence[str], seed: int) -> Curve | None:
    """`curve`'s fields of 1 - the mean cosine between pictures of one prompt; None if no prompt has two seeds.

    drawn: unit features (n, scales, W); each prompt counts once.
    """
    found = {}
    for prompt in dict.fromkeys(prompts):
        some = drawn[[k for k, other in enumerate(prompts) if other == prompt]]
        if len(some) > 1:
            found[prompt] = np.array([1 - among(some[:, k]) for k in range(some.shape[1])])
    return curve(np.stack(list(found.values())), list(found), seed) if found else None


def among(features: Tensor) -> float:
    """The mean cosine between different rows of unit features (n, W), n > 1."""
    count = len(features)
    return float((features @ features.T).double().sum() - count) / (count * (count - 1))


def warnings(report: Report) -> list[str]:
    """Warnings next to the verdict, one line each."""
    scales, found = report["scales"], report["recommended"]
    lines = list(report["told"])
    for kind, group in report["groups"].items():
        flags = group["nearest_training"]["copies"] if "nearest_training" in group else [False] * len(scales)
        copied = [f"{scale:g}" for scale, copies in zip(scales, flags, strict=True) if copies and scale]
        if copied:
            lines.append(f"{kind}: at scale {', '.join(copied)} the pictures are copies of training pictures: nearer to them "
                         "than held-out pictures are, and nearer than to held-out pictures")
        line, low = group["similarity"]["drawings"], group["similarity"]["low"]
        above = [f"{scale:g}" for scale, end in zip(scales, low, strict=True)
                 if line is not None and end is not None and end > line]
        if above:
            lines.append(f"{kind}: at scale {', '.join(above)} the pictures are more like real ones than those are like each "
                         f"other ({line:.3f}): they may be copies, or all alike")
    varied, shown = report["diversity"], found["scale"] if found["scale"] is not None else found["best"]
    if varied and varied["drawings"]:
        ours = varied["mean"][scales.index(shown)]
        if ours is not None and ours < COLLAPSED * varied["drawings"]:
            lines.append(f"at scale {shown:g} pictures of one prompt differ from seed to seed by {ours:.3f}, real ones by "
                         f"{varied['drawings']:.3f}: the LoRA draws much the same for every seed")
    return lines
