"""Clocks and measurements: alternating steps, medians, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.benchmark.steps import Step
from trainer.training.devices import synchronize


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds of one optimizer step: wall-clock seconds, and CPU-seconds of all threads."""

    seconds: float
    cpu_seconds: float


def race(steps: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time `steps` in turns, so that a busier or hotter machine slows all of them. The first round is not counted."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for round in range(rounds + 1):
        for name, step in steps.items():
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            synchronize(device)
            if round:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Timing(*(statistics.median(column) for column in zip(*both, strict=True))) for name, both in taken.items()}


def profile(step: Step, device: torch.device) -> str:
    """A table of the operations (on a GPU, kernels) that take the most time in one `step`, after a warm-up step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    step()
    synchronize(device)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profiler(activities=kinds) as seen:
        step()
        synchronize(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table: str = seen.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    return table


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Peak memory: of a GPU since `reset_peak`; of this process since its start on a CPU; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform

    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s) of torch"
