"""A run's numbers as they come: JSON lines in the run folder, a progress bar, a tracker where asked, a curve at the end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from convert.errors import JobError
from convert.files import write_text
from trainer.training.deferred import Report


class Metrics:
    """Writes `metrics.jsonl`, a line a step: step, loss, learning_rate, grad_norm, pictures_per_second; and held_out.

    On resume, lines of steps that were not kept are dropped first, so the file reads as one run.
    """

    def __init__(self, path: Path, *, first: int, total: int, tracker: Any = None) -> None:
        from tqdm import tqdm

        self.path, self.tracker = path, tracker
        kept = [line for line in read_lines(path) if line["step"] <= first]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()
        self._bar = tqdm(total=total, initial=first, desc="training", unit="step", dynamic_ncols=True, disable=None)

    def report(self, report: Report) -> None:
        """Write an optimizer step's numbers."""
        pace = report.pictures / max(report.seconds, 1e-9)
        self._write({"step": report.step, "loss": report.loss, "learning_rate": report.learning_rate,
                     "grad_norm": report.grad_norm, "pictures_per_second": round(pace, 3)})
        self._bar.set_postfix(loss=f"{report.loss:.4f}", lr=f"{report.learning_rate:.1e}", pictures_s=f"{pace:.1f}",
                              refresh=False)
        self._bar.update()

    def held_out(self, step: int, loss: float) -> None:
        self._write({"step": step, "held_out_loss": loss})

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        self._file.close()
        if self.tracker:
            self.tracker.finish()

    def _write(self, values: dict[str, float | None]) -> None:
        self._file.write(json.dumps(values) + "\n")
        if self.tracker:
            self.tracker.log({k: v for k, v in values.items() if k != "step" and v is not None}, step=values["step"])


def check_tracker(name: str) -> None:
    """JobError where the tracker asked for is not installed: said before the data comes, not after the encoding."""
    if name and not importlib.util.find_spec(name):
        raise JobError(f"--track {name}: {name} is not installed: pip install {name}, or leave --track out")


def open_tracker(name: str, run: Path, config: dict[str, Any]) -> Any:
    """accelerate's tracker `name` (tensorboard, wandb), logging into `run`; None for ""."""
    if not name:
        return None
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    PartialState()  # the trackers' log lines ask it which process this is
    kinds = {"tensorboard": lambda: TensorBoardTracker("scribble", logging_dir=run),
             "wandb": lambda: WandBTracker("scribble", dir=str(run))}
    tracker = kinds[name]()
    tracker.start()
    tracker.store_init_configuration(config)
    return tracker


def read_lines(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; a last one that a crash cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines




