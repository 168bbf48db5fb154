"""The report's figures: curves against the scale (matplotlib) and grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.evaluate.gallery import Gallery
from trainer.evaluate.subjects import Plan, Subject
from trainer.sample.grid import draw_grid, write_png

COLOURS = {"seen": "#1f6fb4", "unseen": "#e07b1a", "held-out captions": "#1f6fb4"}
PLOTS = (  # key of a group's curve, file, title, label of the axis
    ("clip_score", "figure-10-clip-score", "CLIP score (figure 10)", "100 · max(cos, 0)"),
    ("similarity", "figure-11-similarity", "Similarity to held-out drawings (figure 11)", "cosine of image features"),
    ("ink_distance", "ink-distance", "Ink distance from held-out drawings", "distance, log scale"),
    ("held_out_loss", "held-out-loss", "Denoising loss on held-out drawings", "mean squared error"),
)
CELL, SMALL_CELL = 192, 112


def draw_plots(report: dict[str, Any], out: Path) -> dict[str, bytes]:
    """Write every plot into `out` as PNG; returns them as SVG, by their curve's key."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "scribble", "font.size": 11, "axes.spines.top": False,
                                "axes.spines.right": False}):  # fmt: skip
        return {key: _plot(report, key, title, label, out / f"{file}.png") for key, file, title, label in PLOTS}


def _plot(report: dict[str, Any], key: str, title: str, label: str, path: Path) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    from convert.files import atomic_path

    figure = Figure(figsize=(5.4, 4.1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, group in report["groups"].items():
        _line(axes, report["scales"], group[key], kind)
    for value, kinds in _real(report, key).items():
        named = f"{kinds[0]}: real drawings" if len(kinds) < len(report["groups"]) else "real drawings"
        axes.axhline(value, color=COLOURS[kinds[0]] if len(kinds) == 1 else "#777", linestyle="--", linewidth=1, label=named)
    if key == "similarity" and report["recommended"]["verdict"] != "none":
        found = report["recommended"]
        axes.axvspan(found["low"] - 0.008, found["high"] + 0.008, color="#3a9d5d", alpha=0.15, linewidth=0)
        axes.axvline(found["scale"], color="#3a9d5d", linewidth=1.2, label=f"recommended: {found['scale']:g}")
    if key == "ink_distance":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set(xlabel="LoRA scale", ylabel=label, title=title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def _line(axes: Any, scales: list[float], curve: dict[str, Any], kind: str) -> None:
    colour = COLOURS[kind]
    axes.plot(scales, curve["mean"], "o-", color=colour, markersize=3.5, label=f"{kind} (n = {curve['n']})")
    axes.fill_between(scales, curve["low"], curve["high"], color=colour, alpha=0.16, linewidth=0)


def _real(report: dict[str, Any], key: str) -> dict[float, list[str]]:
    """The real drawings' own value of a measure -> the groups that have it."""
    found: dict[float, list[str]] = {}
    for kind, group in report["groups"].items():
        if group[key].get("drawings") is not None:
            found.setdefault(group[key]["drawings"], []).append(kind)
    return found


def draw_grids(plan: Plan, gallery: Gallery, scales: list[float], rows: int, out: Path) -> dict[str, dict[str, Any]]:
    """Write figures 5 to 9 into `out`, PNG; returns of each its file, title, rows and a small image for the page."""
    columns = [f"{scale:g}" for scale in scales]
    grids: dict[str, dict[str, Any]] = {}
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
    names = {"seen": ("figure-6-seen", "Categories it was trained on (figure 6)"),
             "unseen": ("figure-7-unseen", "Categories it never saw (figure 7)"),
             "held-out captions": ("captions", "Held-out captions")}
    for group in plan.groups:
        distinct = {subject.name: subject for subject in reversed(group.subjects)}
        first = [distinct[name] for name in dict.fromkeys(s.name for s in group.subjects)]
        found.append((*names[group.kind], first[:rows]))
    found.append(("figure-8-complex-with", "Complex prompts with the trigger words (figure 8)", plan.with_trigger))
    found.append(("figure-9-complex-without", "The same prompts and seeds without them (figure 9)", plan.without_trigger))
    return [grid for grid in found if grid[2]]
