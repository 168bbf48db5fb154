"""The cost of a run, counted before it starts: steps, pictures, memory, time."""

from __future__ import annotations

import time
from dataclasses import dataclass

from convert.errors import UsageError
from trainer.base.facts import is_miniature, picture_side
from trainer.recipe import Recipe

# Operations for one 512-pixel picture, 2 per multiply-add, counted on SD1.5's UNet: forward and backward with only a
# rank-4 attention LoRA learning.
TRAIN_GFLOP = 1714.0
MINIATURE_GFLOP = 4.4  # the same for one 128-pixel picture on the miniature
EFFICIENCY = {"cuda": 0.35, "cpu": 0.5, "mps": 0.3}  # rough share of a large matrix product's rate that training reaches
DAY = 86400.0


@dataclass(frozen=True)
class Plan:
    """The size of a run, counted before it starts."""

    pictures: int
    """in an epoch: each counted with its repeats"""
    total_steps: int
    samples: int
    """pictures seen in all"""
    side: int
    """of a picture, in pixels"""
    latent_bytes: int
    """of the encoded set, in fp16"""


def plan(recipe: Recipe, pictures: int, *, encoded: int = 0) -> Plan:
    """The plan of a run with `pictures` pictures in an epoch; encoded: the number of distinct ones (0: the same)."""
    steps = recipe.total_steps(pictures)
    per_epoch = recipe.steps_per_epoch(pictures)
    epochs, rest = divmod(steps, per_epoch)
    samples = epochs * pictures + min(rest * recipe.batch * recipe.accumulation, pictures)
    side, views = picture_side(recipe), 2 if recipe.flip else 1
    return Plan(pictures=pictures, total_steps=steps, samples=samples, side=side,
                latent_bytes=(encoded or pictures) * views * 2 * 4 * (side // 8) ** 2 * 2)


def seconds(recipe: Recipe, samples: int, device: str, flops: float) -> float:
    """Expected training time on `device` ("cuda", "cpu", "mps") whose matrix products run at `flops` operations/s."""
    gflop, side = (MINIATURE_GFLOP, 128) if is_miniature(recipe.base) else (TRAIN_GFLOP, 512)
    work = gflop * 1e9 * (picture_side(recipe) / side) ** 2
    return samples * work / (flops * EFFICIENCY[device])


def cpu_flops_per_second() -> float:
    """The rate of a large float32 matrix product on this CPU, operations per second, measured without torch.

    Measured in this thread's CPU time, because other programs may be running.
    """
    import numpy as np

    a = np.ones((1024, 1024), np.float32)
    a @ a  # the first product starts the library's threads
    products, start = 0, time.thread_time()
    while (spent := time.thread_time() - start) < 0.2:  # Windows' clock ticks every 15.6 ms
        a @ a
        products += 1
    return products * 2 * len(a) ** 3 / spent


def in_words(duration: float) -> str:
    """'40 minutes', '6 hours', '31 days'."""
    for unit, length in (("days", DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if duration >= 2 * length:
            return f"{duration / length:.0f} {unit}"
    return f"{duration:.0f} seconds"


def refuse_cpu_by_accident(recipe: Recipe, samples: int, flops: float) -> None:
    """Refuse SD1.5 on a CPU, which takes weeks, with a UsageError."""
    raise UsageError(f"no GPU was found, and on this CPU the run would take about "
                     f"{in_words(seconds(recipe, samples, 'cpu', flops))}: give --device cpu to train anyway, or --demo for "
                     "the embedded miniature")


def report(recipe: Recipe, counted: Plan, device: str, flops: float, *, modules: int = 0, numbers: int = 0) -> str:
    """The dry run's text. modules, numbers: how many are trained."""
    settled = recipe.as_dict() | {"alpha": recipe.true_alpha, "resolution": counted.side, "steps": counted.total_steps,
                                  "epochs": recipe.passes(counted.pictures)}
    lines = [f"{name:<16} {value}" for name, value in settled.items()]
    lines += ["", f"pictures         {counted.pictures}", f"optimizer steps  {counted.total_steps}",
              f"samples          {counted.samples}, each picture {counted.samples / counted.pictures:.4g} times",
              f"encoded set      {counted.latent_bytes / 2**20:.0f} MiB in fp16"]
    lines += [f"to learn         {modules} modules, {numbers:,} numbers"] if modules else []
    if is_miniature(recipe.base):
        memory = "about 2 GiB"
    else:
        memory = ("about 5 GiB of GPU memory at --micro-batch 1, about 3 with gradient checkpointing" if device == "cuda"
                  else "about 12 GiB")
    lines += [f"memory           {memory} (estimate)",
              f"time             about {in_words(seconds(recipe, counted.samples, device, flops))} on this {device} "
              f"({flops / 1e12:.2f} TFLOP/s in a matrix product; estimate)"]
    return "\n".join(lines)


