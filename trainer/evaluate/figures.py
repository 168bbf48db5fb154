"""The report's figures: curves against the scale (matplotlib) and grids of pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image

from convert.files import atomic_path
from trainer.evaluate.gallery import Gallery
from trainer.evaluate.results import Distance, Grid, Interval, Key, Numbers, Report
from trainer.evaluate.subjects import HELD_OUT, SEEN, UNSEEN, Plan, Subject
from trainer.sample.grid import draw_grid, write_png

if TYPE_CHECKING:  # slow to load
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {SEEN: "#1f6fb4", UNSEEN: "#e07b1a", HELD_OUT: "#1f6fb4"}
CELL, SMALL_CELL = 192, 112


class Plot(NamedTuple):
    key: Key | Literal["style_prompt"]
    """of a group's curve"""
    file: str
    title: str
    axis: str


STYLE_PROMPT = Plot("style_prompt", "style-against-prompt", "Style against prompt", "similarity to held-out drawings")
PLOTS = (
    Plot("similarity", "figure-11-similarity", "Similarity to held-out drawings (figure 11)", "cosine of image features"),
    STYLE_PROMPT,
    Plot("clip_score", "figure-10-clip-score", "CLIP score (figure 10)", "100 · max(cos, 0)"),
    Plot("ink_distance", "ink-distance", "Ink distance from held-out drawings", "distance, log scale"),
    Plot("dino_similarity", "dino-similarity", "Similarity by DINOv2, which is not a CLIP", "cosine of image features"),
    Plot("cmmd", "cmmd", "Distance of distributions (CMMD)", "1000 · squared MMD"),
    Plot("held_out_loss", "held-out-loss", "Denoising loss on held-out drawings", "mean squared error, against the base"),
    Plot("nearest_training", "nearest-training", "Nearest training picture", "cosine of image features"),
)


def draw_plots(report: Report, out: Path) -> dict[str, bytes]:
    """Write every plot into `out` as PNG; returns them as SVG, by their curve's key."""
    import matplotlib

    groups = report["groups"].values()
    with matplotlib.rc_context({"svg.hashsalt": "scribble", "font.size": 12, "axes.spines.top": False,
                                "axes.spines.right": False}):  # fmt: skip
        return {plot.key: _save(_figure(report, plot), out / f"{plot.file}.png") for plot in PLOTS
                if plot == STYLE_PROMPT or any(plot.key in group for group in groups)}


def _figure(report: Report, plot: Plot) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(5.4, 4.1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if plot.key == "style_prompt":
        _style_prompt(axes, report)
    else:
        for kind, group in report["groups"].items():
            if plot.key in group:
                # of the loss the difference, because its level depends on the drawings
                shown = group["held_out_loss"]["against_base"] if plot.key == "held_out_loss" else group[plot.key]
                _line(axes, report["scales"], shown, group[plot.key], kind)
        _real_lines(axes, report, plot.key)
    scale, low, high = (report["recommended"][part] for part in ("scale", "low", "high"))
    if plot.key == "similarity" and scale is not None and low is not None and high is not None:
        axes.axvspan(low - 0.008, high + 0.008, color="#3a9d5d", alpha=0.15, linewidth=0)
        axes.axvline(scale, color="#3a9d5d", linewidth=1.2, label=f"recommended: {scale:g}")
    if plot.key == "ink_distance":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    x = "CLIP score of the prompt without trigger words" if plot == STYLE_PROMPT else "LoRA scale"
    axes.set(xlabel=x, ylabel=plot.axis, title=plot.title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def _save(figure: Figure, path: Path) -> bytes:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def _line(axes: Axes, scales: list[float], shown: Interval, curve: Distance, kind: str) -> None:
    """A group's means with their interval."""
    colour, label = COLOURS[kind], f"{kind}: {curve['n']} of {curve['categories']} categories"
    axes.plot(scales, _floats(shown["mean"]), "o-", color=colour, markersize=3.5, label=label)
    if None not in shown["low"]:
        axes.fill_between(scales, _floats(shown["low"]), _floats(shown["high"]), color=colour, alpha=0.16, linewidth=0)


def _floats(numbers: Numbers) -> np.ndarray:
    """float (scales,), NaN for None."""
    return np.array(numbers, dtype=float)


def _style_prompt(axes: Axes, report: Report) -> None:
    """Each scale's gain in style and loss in following the prompt; points are scales."""
    for kind, group in report["groups"].items():
        x, y = _floats(group["prompt_score"]["mean"]), _floats(group["similarity"]["mean"])
        axes.plot(x, y, "o-", color=COLOURS[kind], markersize=3.5, linewidth=1, label=kind)
        for k in {0, len(x) // 2, len(x) - 1}:
            axes.annotate(f"{report['scales'][k]:g}", (x[k], y[k]), textcoords="offset points", xytext=(5, 5), fontsize=8)


def _real_lines(axes: Axes, report: Report, key: Key) -> None:
    """The real drawings' own value of a measure, dashed; one line if the groups share it."""
    found: dict[float, list[str]] = {}
    for kind, group in report["groups"].items():
        value = group[key].get("drawings") if key in group else None
        if value is not None:
            found.setdefault(value, []).append(kind)
    for value, kinds in found.items():
        label = f"{kinds[0]}: real drawings" if len(kinds) < len(report["groups"]) else "real drawings"
        axes.axhline(value, color=COLOURS[kinds[0]] if len(kinds) == 1 else "#777", linestyle="--", linewidth=1, label=label)


def draw_grids(plan: Plan, gallery: Gallery, scales: list[float], rows: int, out: Path) -> dict[str, Grid]:
    """Write figures 5 to 9 into `out`, PNG; returns each one's file, title, rows and a small image for the page."""
    columns = [f"{scale:g}" for scale in scales]
    grids: dict[str, Grid] = {}
    for name, title, subjects in _grids(plan, rows):
        pictures = gallery.read_all(subjects, scales)
        labels = [f"seed {s.seed}" if name == "figure-5-seeds" else s.prompt for s in subjects]
        large = draw_grid(pictures, labels, columns, title=f"{title}, against the LoRA scale", cell=CELL)
        write_png(large, out / f"{name}.png")
        small: Image.Image = draw_grid(pictures, labels, columns, cell=SMALL_CELL)
        grids[name] = {"file": f"{name}.png", "title": title, "image": small,
                       "rows": [{"prompt": s.prompt, "seed": s.seed} for s in subjects]}
    return grids


def _grids(plan: Plan, rows: int) -> list[tuple[str, str, Sequence[Subject]]]:
    found: list[tuple[str, str, Sequence[Subject]]] = [
        ("figure-5-seeds", f"Seeds of one prompt: {plan.one_prompt[0].prompt} (figure 5)", plan.one_prompt)]
    names = {SEEN: ("figure-6-seen", "Categories it was trained on (figure 6)"),
             UNSEEN: ("figure-7-unseen", "Categories it never saw (figure 7)"),
             HELD_OUT: ("captions", "Held-out captions")}
    for group in plan.groups:
        distinct = {subject.name: subject for subject in reversed(group.subjects)}
        first = [distinct[name] for name in dict.fromkeys(s.name for s in group.subjects)]
        found.append((*names[group.kind], first[:rows]))
    found.append(("figure-8-complex-with", "Complex prompts with the trigger words (figure 8)", plan.with_trigger))
    found.append(("figure-9-complex-without", "The same prompts and seeds without them (figure 9)", plan.without_trigger))
    return [grid for grid in found if grid[2]]
