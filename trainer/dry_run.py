"""`--dry-run`: prints a run's data, recipe and cost without starting it and without loading torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainer import plan
from trainer.base.facts import inspect_base
from trainer.cli import Job
from trainer.data import to_fetch
from trainer.inspect import check_job, inspect, inspect_unfetched
from trainer.lora.targets import count
from trainer.recipe import Recipe
from trainer.terminal import say, say_nothing

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of GPU drivers on Linux: NVIDIA's, AMD's, Windows' under WSL."""


def dry_run(recipe: Recipe, job: Job) -> int:
    """Print the report; returns the exit status. Raises JobError and UsageError for errors that would stop the run."""
    tell = say if os.environ.get("RANK", "0") == "0" else say_nothing  # the first of a launcher's processes
    if job.note:
        tell(job.note)
    pictures = check_job(recipe, job, tell)
    if pictures is None or not to_fetch(recipe, job.cache):
        pictures = inspect(recipe, job, tell).per_epoch
    else:
        inspect_unfetched(recipe, job, pictures, tell)
    modules, numbers = count(recipe, inspect_base(recipe))
    device, flops = _speed(job.device)
    tell(plan.report(recipe, plan.plan(recipe, pictures), device, flops, modules=modules, numbers=numbers))
    return 0


def _speed(name: str) -> tuple[str, float]:
    """The kind of device for `--device`, and its speed in a matrix product in operations per second."""
    if name == "cpu" or (name == "auto" and sys.platform == "linux" and not any(Path(p).exists() for p in GPU_DRIVERS)):
        return "cpu", plan.cpu_flops_per_second()
    from trainer.training import devices

    compute = devices.choose(name)
    return compute.device.type, devices.flops_per_second(compute)
