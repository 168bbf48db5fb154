"""The result of a study: the rows' reports as one table, averaged over seeds, and one plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from convert.files import atomic_path, write_json, write_text
from trainer.evaluate.claim import read as read_report
from trainer.evaluate.figures import COLOURS
from trainer.evaluate.report import judged
from trainer.evaluate.results import PARTS, Key, Report
from trainer.evaluate.statistics import by_category, interval
from trainer.study.table import Row, Study

COLUMNS: tuple[tuple[Key, str], ...] = (("similarity", "similarity"), ("prompt_score", "prompt score"),
                                        ("clip_score", "CLIP score"), ("ink_distance", "ink distance"),
                                        ("held_out_loss", "loss"))  # fmt: skip
Outcome = dict[str, Any]
"""A row of study.json."""


class Value(TypedDict):
    """A measure at one scale: its interval, or its spread over seeds."""

    mean: float
    low: float | None
    high: float | None
    spread: NotRequired[float | None]


def outcome_of(row: Row, x: float | None, report: Path, failure: str) -> Outcome:
    """One row as plain data: its measures at the recommended scale, or at the best if none is recommended.

    failure: the reason for a missing report, or "".
    """
    found: Outcome = {"name": row.name, "line": row.line, "series": row.series, "x": x, "step": row.step, "on": row.on,
                      "recipe": row.recipe.as_dict(), "failed": failure}
    if failure:
        return found
    read: Report = read_report(report)
    recommended = read["recommended"]
    at = read["scales"].index(recommended["scale"] if recommended["scale"] is not None else recommended["best"])
    groups = {kind: {key: {part: group[key][part][at] for part in PARTS} for key, _ in COLUMNS}
              for kind, group in read["groups"].items()}
    categories: dict[str, float] = {}
    for kind, group in read["groups"].items():
        subjects = judged(group, read)
        means, names = by_category(np.array([s["similarity"][at] for s in subjects]), [s["name"] for s in subjects])
        categories |= {f"{kind}: {name}": float(mean) for name, mean in zip(names, means, strict=True)}
    return found | {"groups": groups, "categories": categories, "shown": read["scales"][at],
                    **{key: read[key] for key in ("recommended", "judges", "versions", "warnings")}}


def write_outcome(study: Study, rows: list[Outcome], out: Path) -> str:
    """study.json, table.md and plot.png into `out`; returns the table."""
    lines = merged(rows)
    table = _table(study, lines)
    write_json(out / "study.json", {"question": study.question, "axis": study.axis, "equal": study.equal,
                                    "repeats": study.repeats, "lines": lines, "rows": rows})  # fmt: skip
    write_text(out / "table.md", f"# {study.question}\n\n{table}\n\n{_note(study)}\n\n"
               "![similarity and held-out loss of every row](plot.png)\n")
    if any(line["groups"] for line in lines):
        _plot(study, [line for line in lines if line["groups"]], out / "plot.png")
    return table


def merged(rows: list[Outcome]) -> list[Outcome]:
    """The outcomes averaged over seeds: one line for each thing compared.

    A measure of several seeds is their mean and `spread`, the standard deviation over seeds; of one seed its own interval.
    against_first: the similarity's difference from the first line's, its 95 % interval paired by category; null if the
    categories differ.
    """
    found: list[Outcome] = []
    for name in dict.fromkeys(row["line"] for row in rows):
        some = [row for row in rows if row["line"] == name]
        done = [row for row in some if not row["failed"]]
        line: Outcome = {"name": name, "series": some[0]["series"], "x": some[0]["x"], "seeds": len(done),
                         "failed": "; ".join(dict.fromkeys(row["failed"] for row in some if row["failed"])), "groups": {}}
        if done:
            line |= {"groups": {kind: {key: _over_seeds([row["groups"][kind][key] for row in done if kind in row["groups"]])
                                       for key, _ in COLUMNS} for kind in done[0]["groups"]},
                     "scales": [row["recommended"]["scale"] for row in done], "shown": [row["shown"] for row in done],
                     "categories": {key: float(np.mean([row["categories"].get(key, np.nan) for row in done]))
                                    for key in done[0]["categories"]}}  # fmt: skip
        found.append(line)
    first = next((line for line in found if line["groups"]), None)
    for line in found:
        line["against_first"] = _paired(line, first) if first and line is not first else None
    return found


def _over_seeds(values: list[Value]) -> Value:
    if len(values) == 1:
        return {**values[0], "spread": None}
    means = [value["mean"] for value in values]
    return {"mean": float(np.mean(means)), "low": None, "high": None, "spread": float(np.std(means, ddof=1))}


def _paired(line: Outcome, first: Outcome) -> Value | None:
    if not line["groups"] or line["categories"].keys() != first["categories"].keys():
        return None
    difference = np.array([[line["categories"][key] - first["categories"][key]] for key in first["categories"]])
    low, high = interval(difference, seed=0)
    known = bool(np.isfinite(low[0]))
    return {"mean": float(difference.mean()), "low": float(low[0]) if known else None,
            "high": float(high[0]) if known else None}


def _table(study: Study, lines: list[Outcome]) -> str:
    kinds = next((list(line["groups"]) for line in lines if line["groups"]), [])
    head = [study.axis or "row", "scale", "similarity against the first row",
            *(f"{title}, {kind}" for kind in kinds for _, title in COLUMNS)]
    text = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        cells = [line["name"]]
        if not line["groups"]:
            cells += [f"failed: {line['failed']}", *[""] * (len(head) - 2)]
        else:
            cells += [_scales(line), _cell(line["against_first"], "+")]
            cells += [_cell(line["groups"].get(kind, {}).get(key)) for kind in kinds for key, _ in COLUMNS]
        text.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(text)


def _scales(line: Outcome) -> str:
    """The recommended scale of each seed; the scale shown is in brackets if there is no recommendation."""
    cells = [f"{scale:g}" if scale is not None else f"none ({shown:g})"
             for scale, shown in zip(line["scales"], line["shown"], strict=True)]  # fmt: skip
    return ", ".join(cells) + (f"; failed: {line['failed']}" if line["failed"] else "")


def _cell(value: Value | None, sign: str = "") -> str:
    if not value:
        return ""
    text = f"{value['mean']:{sign}.4g}"
    if value.get("spread") is not None:
        return f"{text} ± {value['spread']:.2g}"
    return f"{text} [{value['low']:{sign}.4g}, {value['high']:{sign}.4g}]" if value["low"] is not None else text


def _note(study: Study) -> str:
    text = ("Each row at the scale recommended for it. In brackets: 95 % intervals over categories, paired where rows are "
            "compared.")
    if study.repeats > 1:
        text += f" ±: standard deviation over {study.repeats} training seeds on the same data."
    if study.checkpoints and study.rows and study.rows[0].series:
        text += f" Rows have equal {study.equal}."
    return text


def _plot(study: Study, lines: list[Outcome], path: Path) -> None:
    """Similarity and held-out loss of each line; numeric if every line has a number, a curve for each series and group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(line["series"] for line in lines))
    numbered = all(line["x"] is not None for line in lines)
    numeric = numbered and len({(line["series"], line["x"]) for line in lines}) == len(lines)
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key, label in zip(figure.subplots(1, 2), ("similarity", "held_out_loss"),
                                ("similarity to held-out drawings", "held-out denoising loss"), strict=True):  # fmt: skip
        for number, name in enumerate(series):
            some = [line for line in lines if line["series"] == name]
            for shift, kind in enumerate(some[0]["groups"]):
                values = [line["groups"][kind][key] for line in some]
                at = [line["x"] for line in some] if numeric else [lines.index(line) + 0.12 * shift for line in some]
                colour = COLOURS[kind] if len(series) == 1 else f"C{number}"
                axes.errorbar(at, [value["mean"] for value in values], yerr=_bars(values), capsize=3, color=colour,
                              fmt=("o-" if shift == 0 else "s--") if numeric else "o", label=f"{name} {kind}".strip())
        if not numeric:
            axes.set_xticks(range(len(lines)), [line["name"] for line in lines], rotation=25, ha="right")
        axes.set(xlabel="optimizer step" if lines[0]["series"] else study.axis, ylabel=label)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(study.question, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140, metadata={"Software": None})


def _bars(values: list[Value]) -> list[list[float]]:
    """Below and above the mean: the interval, or the spread over seeds, or nothing."""
    below, above = [], []
    for value in values:
        spread = value["spread"] or 0.0
        below.append(value["mean"] - value["low"] if value["low"] is not None else spread)
        above.append(value["high"] - value["mean"] if value["high"] is not None else spread)
    return [below, above]
