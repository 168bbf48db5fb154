"""Compares two reports: the same prompts, seeds and noise drawn with two LoRAs, compared in pairs."""

from __future__ import annotations

import csv
import io
from html import escape
from pathlib import Path

import numpy as np

from convert.errors import UsageError
from convert.files import write_text
from trainer.evaluate.claim import PAGE, REPORT, finished
from trainer.evaluate.curves import numbers
from trainer.evaluate.page import NAMES, document, number, rows
from trainer.evaluate.report import category_means, seed_of
from trainer.evaluate.results import PARTS, Interval, Measured, Report
from trainer.evaluate.statistics import interval

AGAINST, TABLE = "against.html", "against.csv"
KEYS: tuple[Measured, ...] = ("similarity", "prompt_score", "clip_score", "ink_distance")
SAME = ("per_scale", "prompts", "drawings", "sampling_steps", "guidance", "seed", "clip", "image_clip")


def compare(ours: Report, out: Path, other: Path) -> str:
    """Write against.html and against.csv into `out`; returns the comparison of the two recommended scales in a sentence.

    Raises:
        UsageError: `other` has no finished report, or one with other prompts, seeds or settings.
    """
    theirs = finished(other)
    if theirs is None:
        raise UsageError(f"--against {other}: has no finished report ({REPORT} and {PAGE})")
    _check_paired(ours, theirs, other)
    scales = [scale for scale in ours["scales"] if scale in theirs["scales"]]
    table = {key: _differences(ours, theirs, key, [(scale, scale) for scale in scales]) for key in KEYS}
    sentence = _sentence(ours, theirs)
    lines = [([f"{scale:g}", *(number(*(table[key][part][k] for part in PARTS)) for key in KEYS)], False)
             for k, scale in enumerate(scales)]  # fmt: skip
    names = f"{ours['lora']['name']} against {theirs['lora']['name']}"
    levels = [([f"{scale:g}", *(f"{category_means(report, key).mean(axis=0)[report['scales'].index(scale)]:.4g}"
                                for key in KEYS for report in (ours, theirs))], False) for scale in scales]
    write_text(out / AGAINST, document(names, [
        f"<h1>{escape(names)}</h1>", f"<p class=verdict>{escape(sentence)}</p>",
        f"<p class=soft>Against <a href='{escape(other.resolve().as_uri())}/{PAGE}'>{escape(str(other))}</a>. Pairs share "
        "prompt, seed and noise. In brackets 95 % intervals over categories.</p>",
        "<h2>Differences at equal scales</h2>", rows(["scale", *(NAMES[key] for key in KEYS)], lines),
        "<h2>Side by side</h2>",
        rows(["scale", *(f"{NAMES[key]}, {report['lora']['name']}" for key in KEYS for report in (ours, theirs))], levels)]))
    write_text(out / TABLE, _csv(scales, table))
    return sentence


def _check_paired(ours: Report, theirs: Report, other: Path) -> None:
    different = [key for key in SAME if ours["settings"].get(key) != theirs["settings"].get(key)]

    def drawn(report: Report) -> list[tuple[str, str, int]]:
        return [(kind, s["prompt"], s["seed"]) for kind, group in report["groups"].items() for s in group["subjects"]]

    if different:
        raise UsageError(f"--against {other}: was measured with another {' and '.join(different)}: measure both alike")
    if drawn(ours) != drawn(theirs):
        raise UsageError(f"--against {other}: has other prompts or seeds: the LoRAs were trained on other categories, or the "
                         "data differs; give --data, --categories and --seed alike")


def _differences(ours: Report, theirs: Report, key: Measured, pairs: list[tuple[float, float]]) -> Interval:
    """Mean, low and high of (ours - theirs) for pairs of scales, paired by category."""
    mine, others = category_means(ours, key), category_means(theirs, key)
    difference = np.stack([mine[:, ours["scales"].index(a)] - others[:, theirs["scales"].index(b)] for a, b in pairs], axis=1)
    low, high = interval(difference, seed_of(ours))
    return {"mean": numbers(difference.mean(axis=0)), "low": numbers(low), "high": numbers(high)}


def _sentence(ours: Report, theirs: Report) -> str:
    at = [report["recommended"]["scale"] if report["recommended"]["scale"] is not None else report["recommended"]["best"]
          for report in (ours, theirs)]  # fmt: skip
    found = _differences(ours, theirs, "similarity", [(at[0], at[1])])
    mean, low, high = (found[part][0] for part in PARTS)
    names = f"{ours['lora']['name']} at {at[0]:g} against {theirs['lora']['name']} at {at[1]:g}"
    if low is None or high is None:
        return f"{names}: {mean:+.3f} similarity; too few categories for an interval."
    verdict = "more like real pictures" if low > 0 else "less like real pictures" if high < 0 else "no measurable difference"
    return f"{names}: {mean:+.3f} similarity, 95 % interval {low:+.3f} to {high:+.3f}: {verdict}."


def _csv(scales: list[float], table: dict[Measured, Interval]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["scale", *(f"{key}_{part}" for key in table for part in PARTS)])
    for k, scale in enumerate(scales):
        writer.writerow([scale, *(found[part][k] for found in table.values() for part in PARTS)])
    return stream.getvalue()
