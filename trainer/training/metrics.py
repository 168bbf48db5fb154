"""Reports a run's numbers: JSON lines in the run folder, a progress bar, and a tracker if one is given."""

from __future__ import annotations

import importlib.util
import json
import math
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.errors import JobError
from convert.files import write_text
from convert.files.json_file import parse
from trainer.plan import in_words
from trainer.recipe import Stored
from trainer.terminal import Say, say_nothing

if TYPE_CHECKING:  # reading metrics does not need torch
    from accelerate.tracking import GeneralTracker

    from trainer.training.deferred import Report

CHECKSUM = "crc32"
Line = dict[str, Any]
"""The numbers of a line; `step` is always among them."""
Values = Mapping[str, float | None]
KEYS = {"step", "loss", "learning_rate", "grad_norm", "pictures_per_second", "held_out_loss"}


class Metrics:
    """Writes `metrics.jsonl`, one line per step: step, loss, learning_rate, grad_norm, pictures_per_second; and held_out.

    On resume, lines of steps after the checkpoint are dropped first, so that the file has every step once. `say` receives a
    line about damaged ones.
    """

    every = 30.0
    """seconds between progress lines if there is no terminal for a bar"""

    def __init__(self, path: Path, *, first: int, total: int, tracker: GeneralTracker | None = None,
                 say: Say = say_nothing) -> None:  # fmt: skip
        from tqdm import tqdm

        self.path, self.tracker, self._say = path, tracker, say
        kept = [line for line in read_lines(path, say) if line["step"] <= first]
        write_text(path, "".join(_encode(line) for line in kept))
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()
        self._bar = tqdm(total=total, initial=first, desc="training", unit="step", dynamic_ncols=True, disable=None)
        self._first, self._total, self._began, self._spoke = first, total, time.monotonic(), time.monotonic()
        if self._bar.disable:
            say(f"every step's numbers are written to {path}")

    def report(self, report: Report) -> None:
        """Write an optimizer step's numbers."""
        pace = report.pictures / max(report.seconds, 1e-9)
        self._write({"step": report.step, "loss": report.loss, "learning_rate": report.learning_rate,
                     "grad_norm": report.grad_norm, "pictures_per_second": round(pace, 3)})
        self._bar.set_postfix(loss=f"{report.loss:.4f}", lr=f"{report.learning_rate:.1e}", pictures_s=f"{pace:.1f}",
                              refresh=False)
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._spoke >= self.every:
            self._spoke = time.monotonic()
            left = (self._spoke - self._began) / (report.step - self._first) * (self._total - report.step)
            self._say(f"step {report.step} of {self._total}, loss {report.loss:.4f}, {pace:.1f} pictures/s, "
                      f"{in_words(left)} left")

    def held_out(self, step: int, loss: float) -> None:
        self._write({"step": step, "held_out_loss": loss})

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        with self._told():
            self._file.close()
        if self.tracker:
            self.tracker.finish()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an OSError, such as a full disk, into a JobError that names the file."""
        try:
            yield
        except OSError as error:
            raise JobError(f"{self.path}: cannot be written ({error.strerror or error}): free some disk space; the same "
                           "command then continues from the last checkpoint") from error

    def _write(self, values: Values) -> None:
        with self._told():
            self._file.write(_encode(values))
        if self.tracker:
            self.tracker.log({k: v for k, v in values.items() if k != "step" and v is not None}, step=values["step"])


def check_tracker(name: str) -> None:
    """JobError if the tracker is not installed, so that this is known before any download or encoding."""
    if name and not importlib.util.find_spec(name):
        raise JobError(f"--track {name}: {name} is not installed: pip install {name}, or leave out --track")


def open_tracker(name: str, run: Path, config: Stored) -> GeneralTracker | None:
    """accelerate's tracker `name` (tensorboard, wandb), logging into `run`; None for ""."""
    if not name:
        return None
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    PartialState()  # required by the trackers' logging
    kinds = {"tensorboard": lambda: TensorBoardTracker("scribble", logging_dir=run),
             "wandb": lambda: WandBTracker("scribble", dir=str(run))}
    tracker = kinds[name]()
    tracker.start()
    tracker.store_init_configuration(config)
    return tracker


def read_lines(path: Path, say: Say = say_nothing) -> list[Line]:
    """The sound lines of a metrics file. `say` receives the number of damaged ones, except a truncated last line."""
    if not path.exists():
        return []
    texts = path.read_bytes().split(b"\n")
    lines = [_decode(text) for text in texts[:-1] if text]
    damaged = lines.count(None)
    if damaged:
        say(f"{path}: {damaged} of its {len(lines)} lines are damaged and are dropped; resuming does not need them")
    return [line for line in lines if line is not None]


def _encode(values: Values) -> str:
    """A line, with a checksum of the others as its last value."""
    text = json.dumps(values)
    return f'{text[:-1]}, "{CHECKSUM}": {zlib.crc32(text.encode())}}}\n'


def _decode(text: bytes) -> Line | None:
    """The values of a line, None if it is damaged. Earlier versions wrote no checksum."""
    try:
        values = parse(text.decode("utf-8"))
    except ValueError:
        return None
    if not isinstance(values, dict) or not all(_is_number(value) for value in values.values()):
        return None
    if values.pop(CHECKSUM, None) not in (None, zlib.crc32(json.dumps(values).encode())) or not values.keys() <= KEYS:
        return None
    return values if type(values.get("step")) is int else None


def _is_number(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]
