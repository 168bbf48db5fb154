"""A study's end: what its rows' reports say, as one table and one plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.errors import JobError
from convert.files import atomic_path, write_json, write_text
from trainer.study.table import Row, Study

COLOURS = {"seen": "#1f6fb4", "unseen": "#e07b1a", "held-out captions": "#1f6fb4"}
COLUMNS = (("similarity", "similarity"), ("clip_score", "CLIP score"), ("ink_distance", "ink distance"),
           ("held_out_loss", "loss"))


def outcome_of(row: Row, x: float | None, report: Path, failure: str) -> dict[str, Any]:
    """One row, as plain data: its curves at the recommended scale. `failure`: why there is no report, or ""."""
    found: dict[str, Any] = {"name": row.name, "x": x, "step": row.step, "on": row.on, "recipe": row.recipe.as_dict(),
                             "failed": failure}
    if failure:
        return found
    try:
        read = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{report}: cannot be read ({error}): delete its folder, and the same command makes it again") from error
    at = read["scales"].index(read["recommended"]["scale"])
    groups = {kind: {key: {part: group[key][part][at] for part in ("mean", "low", "high")} for key, _ in COLUMNS}
              for kind, group in read["groups"].items()}
    return found | {"groups": groups, **{key: read[key] for key in ("recommended", "judges", "versions")}}


def write_outcome(study: Study, rows: list[dict[str, Any]], out: Path) -> str:
    """study.json, table.md and plot.png into `out`; returns the table."""
    table = _table(study, rows)
    write_json(out / "study.json", {"question": study.question, "axis": study.axis, "rows": rows})
    write_text(out / "table.md", f"# {study.question}\n\n{table}\n\n![similarity and held-out loss of every row](plot.png)\n")
    done = [row for row in rows if not row["failed"]]
    if done:
        _plot(study, done, out / "plot.png")
    return table


def _table(study: Study, rows: list[dict[str, Any]]) -> str:
    kinds = next((list(row["groups"]) for row in rows if not row["failed"]), [])
    head = [study.axis or "row", "best scale", *(f"{title}, {kind}" for kind in kinds for _, title in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["name"]]
        if row["failed"]:
            cells += [f"failed: {row['failed']}", *[""] * (len(head) - 2)]
        else:
            best = row["recommended"]
            cells.append(f"{best['scale']:g} [{best['low']:g}, {best['high']:g}]")
            cells += [_cell(row["groups"].get(kind, {}).get(key)) for kind in kinds for key, _ in COLUMNS]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _cell(value: dict[str, float] | None) -> str:
    return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]" if value else ""


def _plot(study: Study, rows: list[dict[str, Any]], path: Path) -> None:
    """Similarity and held-out loss at each row's best scale, with 95 % intervals; numeric where every row has a number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numeric = all(row["x"] is not None for row in rows) and len({row["x"] for row in rows}) == len(rows)
    places = [row["x"] for row in rows] if numeric else list(range(len(rows)))
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key, label in zip(figure.subplots(1, 2), ("similarity", "held_out_loss"),
                                ("similarity to held-out drawings", "held-out denoising loss"), strict=True):  # fmt: skip
        for shift, kind in enumerate(rows[0]["groups"]):
            values = [row["groups"][kind][key] for row in rows]
            means = [value["mean"] for value in values]
            bars = [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]
            at = places if numeric else [place + 0.12 * shift for place in places]
            axes.errorbar(at, means, yerr=bars, fmt="o-" if numeric else "o", capsize=3, color=COLOURS[kind], label=kind)
        if not numeric:
            axes.set_xticks(places, [row["name"] for row in rows], rotation=25, ha="right")
        axes.set(xlabel=study.axis, ylabel=label)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(study.question, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140, metadata={"Software": None})
