"""Measuring this machine's speed with clocks as coarse as those of Windows."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from trainer import plan
from trainer.training import devices

TICK = 0.0156  # seconds


@pytest.mark.parametrize(("clock", "measure"), [
    ("process_time", lambda: devices.flops_per_second(devices.choose("cpu"))), ("thread_time", plan.cpu_flops_per_second),
])  # fmt: skip
def test_a_coarse_clock_does_not_divide_by_zero(clock: str, measure: Callable[[], float],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading is 1 ms after the one before, rounded down to a tick; the loop ends 0.2 s after its start."""
    readings = iter(range(10**6))
    monkeypatch.setattr(time, clock, lambda: int(next(readings) * 1e-3 / TICK) * TICK)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(8, 8))
    rate = measure()
    assert 190 < rate * 0.2 / (2 * 1024**3) < 220  # about 200 products
