"""report.json, report.csv and index.html: every number of an evaluation, for programs, spreadsheets and people."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from convert.files import write_json, write_text
from trainer.evaluate.claim import PAGE, REPORT
from trainer.evaluate.page import page
from trainer.evaluate.results import Grid, GroupReport, Measured, Report, SubjectRecord
from trainer.evaluate.statistics import by_category
from trainer.terminal import say

TABLE = "report.csv"
MEASURES: tuple[Measured, ...] = ("similarity", "prompt_score", "clip_score", "ink_distance", "dino_similarity")


def write_report(report: Report, plots: dict[str, bytes], grids: dict[str, Grid], out: Path) -> None:
    """Write the three files into `out`, report.json last, because its existence marks the report as finished."""
    report["grids"] = {name: {"file": grid["file"], "rows": grid["rows"]} for name, grid in grids.items()}
    write_text(out / TABLE, as_csv(report))
    write_text(out / PAGE, page(report, plots, grids))
    write_json(out / REPORT, report)
    say(f"wrote {out / PAGE}, {REPORT}, {TABLE} and {len(grids) + len(plots)} figures")


def as_csv(report: Report) -> str:
    """One line for each picture and scale, and for each held-out drawing and scale its denoising loss."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["group", "name", "prompt", "seed", "scale", *MEASURES, "held_out_loss", "picture"])
    for kind, group in report["groups"].items():
        for subject in group["subjects"]:
            for k, scale in enumerate(report["scales"]):
                values = [subject[key][k] if key in subject else "" for key in MEASURES]
                table.writerow([kind, subject["name"], subject["prompt"], subject["seed"], scale, *values, "",
                                subject["pictures"][k]])
        for drawing in group["losses"]:
            for scale, loss in zip(report["scales"], drawing["held_out_loss"], strict=True):
                table.writerow([kind, drawing["name"], "", "", scale, *[""] * len(MEASURES), loss, ""])
    return stream.getvalue()


def seed_of(report: Report) -> int:
    """The seed of the resampling for a report's intervals."""
    return int(str(report["settings"]["seed"]))


def judged(group: GroupReport, report: Report) -> list[SubjectRecord]:
    """The pictures of a group that count for its similarity."""
    return group["subjects"][: int(str(report["settings"]["per_scale"]))]


def own_prompt_scores(report: Report) -> np.ndarray:
    """The prompt score of each category's held-out pictures, (categories,) in `category_means`' order."""
    return np.array([group["own_prompt_score"][name] for group in report["groups"].values()
                     for name in dict.fromkeys(s["name"] for s in judged(group, report))])  # fmt: skip


def category_means(report: Report, key: Measured) -> np.ndarray:
    """A measure's means (categories, scales), float, of all groups: the input of intervals and rules."""
    parts = []
    for group in report["groups"].values():
        subjects = judged(group, report)
        parts.append(by_category(np.array([s[key] for s in subjects], dtype=float), [s["name"] for s in subjects])[0])
    return np.concatenate(parts)
