"""The loss curve of a run, PNG."""

from __future__ import annotations

from pathlib import Path

from convert.files import atomic_path


def draw_curve(lines: list[dict[str, float]], path: Path) -> None:
    """The loss against the step, PNG: every step faint, its running mean, and the held-out loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held = [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    if steps:
        axes.plot(*zip(*steps, strict=True), color="#bbb", linewidth=0.6, label="step")
        axes.plot([s for s, _ in steps], running_mean([v for _, v in steps]), color="#222", label="running mean")
    if held:
        axes.plot(*zip(*held, strict=True), "o-", color="#c33", markersize=3, label="held out")
    axes.set(xlabel="optimizer step", ylabel="loss (mean squared error)")
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def running_mean(values: list[float], keep: float = 0.95) -> list[float]:
    """Exponential moving average, corrected for the bias towards 0 at the start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means
