"""Reads a step's numbers from the device one step late, so that the host does not wait for it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from convert.errors import JobError
from trainer.recipe import Recipe

Instant = float | torch.cuda.Event
"""A time of `time.perf_counter()`, or an event on the GPU's stream."""


@dataclass(frozen=True)
class Report:
    """An optimizer step's numbers."""

    step: int
    """counted from 1"""
    loss: float
    learning_rate: float
    grad_norm: float | None
    """before clipping; None if loss scaling overflowed and the step was skipped"""
    pictures: int
    seconds: float
    stop_asked: bool
    """whether any process was asked to stop"""


@dataclass(frozen=True)
class _Pending:
    step: int
    learning_rate: float
    pictures: int
    numbers: Tensor
    """(3,) float32, valid on the host once the device is done: loss, processes asked to stop, gradient norm"""
    start: Instant
    end: Instant
    """CUDA events, or times of `time.perf_counter()`"""


def _between(start: Instant, end: Instant) -> float:
    """Seconds; waits until the device has reached `end`."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    assert isinstance(start, float) and isinstance(end, float)
    return end - start


def not_finite(recipe: Recipe, step: int, what: str) -> JobError:
    """The error that ends a run whose numbers are not finite, with what to change."""
    advice = ("look at the base's weights, and at --noise-offset if you gave it" if step == 1
              else f"lower --learning-rate ({recipe.learning_rate:g})")
    return JobError(f"step {step}: {what}: training stopped; checkpoints of earlier steps are kept: {advice}")


class DeferredMetrics:
    """Queue of steps whose numbers the device may still be computing."""

    def __init__(self, recipe: Recipe, device: torch.device, *, scaled: bool) -> None:
        self.recipe, self.scaled = recipe, scaled
        self._on_cuda = device.type == "cuda"
        self._pending: list[_Pending] = []

    def now(self) -> Instant:
        """A timestamp on the device, for `push`."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def push(self, *, step: int, learning_rate: float, pictures: int, loss_and_stop: Tensor, norm: Tensor,
             start: Instant) -> None:
        """Queue step `step`, which began at `start`; its numbers are copied without waiting."""
        numbers = torch.cat([loss_and_stop, norm.reshape(1)])
        if self._on_cuda:
            host = torch.empty(3, pin_memory=True)
            host.copy_(numbers, non_blocking=True)
            numbers = host
        self._pending.append(_Pending(step, learning_rate, pictures, numbers, start, self.now()))

    def read(self, *, keep: int) -> list[Report]:
        """Reports of all steps but the newest `keep`, oldest first; waits for the device if it must.

        Raises:
            JobError: a step's loss or gradient is not finite.
        """
        cut = max(len(self._pending) - keep, 0)
        ready, self._pending = self._pending[:cut], self._pending[cut:]
        return [self._report(pending) for pending in ready]

    def _report(self, pending: _Pending) -> Report:
        seconds = _between(pending.start, pending.end)
        loss, stop, norm = pending.numbers.tolist()
        if not math.isfinite(loss):
            raise not_finite(self.recipe, pending.step, f"the loss is {loss}")
        if not math.isfinite(norm) and not self.scaled:  # a scaled loss may overflow: the scaler skips that step
            raise not_finite(self.recipe, pending.step, f"the gradient's norm is {norm}")
        return Report(step=pending.step, loss=loss, learning_rate=pending.learning_rate, pictures=pending.pictures,
                      grad_norm=norm if math.isfinite(norm) else None, seconds=seconds, stop_asked=stop > 0)
