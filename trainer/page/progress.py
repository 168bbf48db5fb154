"""A run's progress: its numbers, the time left, its loss curve, its newest sample sheet. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trainer.page.jobs import Job
from trainer.plan import in_words
from trainer.runs.loss_curve import running_mean
from trainer.sample.prompts import SHEET
from trainer.training.metrics import read_lines

RECENT, FEWEST = 20, 4  # steps whose pace tells the time that is left, and how many it takes
POINTS = 300  # of the curve
WIDTH, HEIGHT, MARGIN = 440, 200, 40  # of the curve, in its own units: its words are read at 390 pixels too


@dataclass(frozen=True)
class Progress:
    """A training's or an evaluation's numbers."""

    step: int
    total: int
    loss: float | None
    seconds_left: float | None
    unit: str = "step"

    @property
    def text(self) -> str:
        """A sentence: "step 40 of 360, loss 0.0412, about 3 minutes left"."""
        parts = [f"{self.unit} {self.step} of {self.total}"]
        parts += [f"loss {self.loss:.4f}"] if self.loss is not None else []
        if self.seconds_left is not None and self.step < self.total:
            parts.append(f"about {in_words(self.seconds_left)} left")
        return ", ".join(parts)


class MetricsFiles:
    """The lines of runs' metrics; each file is reread when it has changed."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[tuple[int, int], list[dict[str, Any]]]] = {}

    def lines(self, path: Path) -> list[dict[str, Any]]:
        try:
            found = path.stat()
        except FileNotFoundError:
            return []
        stamp = (found.st_size, found.st_mtime_ns)
        known = self._read.get(path)
        if known and known[0] == stamp:
            return known[1]
        lines = read_lines(path)
        self._read[path] = (stamp, lines)
        return lines


def progress_of(job: Job, lines: list[dict[str, Any]]) -> Progress:
    """From the lines of metrics.jsonl. The time left is the remaining pictures divided by the rate of the last steps.

    There is none during the first three steps, the first of which compiles.
    """
    steps = [line for line in lines if "loss" in line]
    step = int(steps[-1]["step"]) if steps else 0
    paces = [line["pictures_per_second"] for line in steps[-RECENT:] if line.get("pictures_per_second")]
    left = (job.total - step) * job.per_step / median(paces) if len(paces) >= FEWEST else None
    return Progress(step, job.total, steps[-1]["loss"] if steps else None, left)


def newest_sheet(run: Path) -> Path | None:
    """The sheet of the user's sample prompts, else the newest preview."""
    sheet = run / "samples" / SHEET
    return sheet if sheet.exists() else max(run.glob("samples/step-*.png"), default=None)


def curve(lines: list[dict[str, Any]]) -> str:
    """The loss against the step as an SVG with its numbers as text for screen readers; "" if there is nothing to draw."""
    points = [(int(line["step"]), float(line["loss"])) for line in lines if line.get("loss") is not None]
    if len(points) < 2:
        return ""
    means = running_mean([loss for _, loss in points])
    every = -(-len(points) // POINTS)
    kept = list(range(0, len(points), every))
    first, last = points[0][0], points[-1][0]
    low, high = min(means), max(means)
    text = f"loss, running mean: {means[0]:.4f} at step {first}, {means[-1]:.4f} at step {last}"

    def at(k: int) -> str:
        x = MARGIN + (points[k][0] - first) / (last - first) * (WIDTH - 2 * MARGIN)
        y = MARGIN + (high - means[k]) / ((high - low) or 1) * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    labels = [(MARGIN, HEIGHT - 12, "start", f"step {first}"), (WIDTH - MARGIN, HEIGHT - 12, "end", f"step {last}"),
              (4, MARGIN - 8, "start", f"{high:.4f}"), (4, HEIGHT - MARGIN + 14, "start", f"{low:.4f}"),
              (WIDTH / 2, 18, "middle", "loss (running mean)")]  # fmt: skip
    drawn = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="13" fill="currentColor">{label}</text>'
                    for x, y, anchor, label in labels)
    return (f'<svg role="img" aria-label="{text}" viewBox="0 0 {WIDTH} {HEIGHT}" class="curve"><title>{text}</title>'
            f'<polyline fill="none" stroke="currentColor" stroke-width="2" points="{" ".join(at(k) for k in kept)}"/>'
            f"{drawn}</svg>")

