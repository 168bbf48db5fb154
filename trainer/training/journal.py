"""What a step came to, read from the device one step late, so that the host does not wait for it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from convert.errors import JobError
from trainer.recipe import Recipe
from trainer.training.metrics import Metrics

if TYPE_CHECKING:
    from trainer.training.loop import Training


@dataclass(frozen=True)
class _Entry:
    step: int
    learning_rate: float
    pictures: int
    numbers: torch.Tensor
    """(3,) float32 on the host, once `ready`: loss, whether a process asks to stop, norm"""
    ready: Any
    """CUDA event, or None where the numbers are there"""
    written: float
    """when the host was through with the step, a time of `time.perf_counter()`"""


def not_finite(recipe: Recipe, step: int, what: str) -> JobError:
    """The error that ends a run whose numbers are lost, with what to change."""
    mend = ("look at the base's weights, and at --noise-offset if you gave it" if step == 1
            else f"lower --learning-rate ({recipe.learning_rate:g})")
    return JobError(f"step {step}: {what}: training stopped; checkpoints of earlier steps are kept: {mend}")


class Journal:
    """Writes each step's metrics, a step late. All processes read the same numbers at the same step."""

    def __init__(self, training: Training, metrics: Metrics | None) -> None:
        self.training, self.metrics = training, metrics
        self._open: _Entry | None = None

    def write(self, step: int, learning_rate: float, norm: torch.Tensor, pictures: int) -> bool:
        """Note step `step`, then report the one before; True if training is to stop now.

        Raises:
            JobError: the loss or the gradient of the step before is not finite.
        """
        numbers = torch.cat([self.training.told, norm.reshape(1)])
        ready = None
        if numbers.device.type == "cuda":
            host = torch.empty(3, pin_memory=True)
            host.copy_(numbers, non_blocking=True)
            numbers, ready = host, torch.cuda.Event()
            ready.record()
        entry = _Entry(step, learning_rate, pictures, numbers, ready, time.perf_counter())
        before, self._open = self._open, entry
        asked = self._report(before) if before else False
        return asked if self.training.processes.count > 1 else self.training.stopped

    def flush(self) -> bool:
        """Report the last step too; True if a process asked to stop in it. Raises JobError as `write`."""
        before, self._open = self._open, None
        return self._report(before) if before else False

    def _report(self, entry: _Entry) -> bool:
        ended = entry.written
        if entry.ready is not None:
            entry.ready.synchronize()
            ended = time.perf_counter()
        loss, stopping, norm = entry.numbers.tolist()
        t, whole = self.training, math.isfinite(norm)
        if not math.isfinite(loss):
            raise not_finite(t.recipe, entry.step, f"the loss is {loss}")
        if not whole and not t.compute.scaled:  # with a scaled loss the scaler leaves this step out and lowers its scale
            raise not_finite(t.recipe, entry.step, f"the gradient's norm is {norm}")
        if self.metrics:
            self.metrics.step(entry.step, loss=loss, learning_rate=entry.learning_rate, grad_norm=norm if whole else None,
                              pictures=entry.pictures, ended=ended)
        return stopping > 0
