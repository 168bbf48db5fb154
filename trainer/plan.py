"""What a run will cost, counted before it starts: steps, pictures, memory, time."""

from __future__ import annotations

from dataclasses import dataclass

from convert.errors import UsageError
from trainer.recipe import MINIATURE, Recipe

# Operations for one 512-pixel picture, 2 per multiply-add, counted on SD1.5's UNet: forward and backward with only a
# rank-4 attention LoRA learning.
TRAIN_GFLOP = 1714.0
EFFICIENCY = {"cuda": 0.35, "cpu": 0.5, "mps": 0.3}  # share of a large matrix product's rate that training reaches, rough
DAY = 86400.0


@dataclass(frozen=True)
class Plan:
    """pictures, total_steps, samples (pictures seen), latent_bytes (of the encoded set in fp16)."""

    pictures: int
    total_steps: int
    samples: int
    latent_bytes: int


def side(recipe: Recipe) -> int:
    """Side in pixels of a training picture, before the base is loaded and says its own."""
    return recipe.resolution or (64 if recipe.base == MINIATURE else 512)


def plan(recipe: Recipe, pictures: int) -> Plan:
    """Count a run over `pictures` training pictures."""
    steps = recipe.total_steps(pictures)
    per_epoch = recipe.steps_per_epoch(pictures)
    epochs, rest = divmod(steps, per_epoch)
    samples = epochs * pictures + min(rest * recipe.batch * recipe.accumulation, pictures)
    latent = side(recipe) // (4 if recipe.base == MINIATURE else 8)
    views = 2 if recipe.flip else 1
    return Plan(pictures=pictures, total_steps=steps, samples=samples, latent_bytes=pictures * views * 2 * 4 * latent**2 * 2)


def seconds(recipe: Recipe, samples: int, device: str, flops: float) -> float:
    """Expected training time on `device` ("cuda", "cpu", "mps") whose matrix products run at `flops` operations/s."""
    work = TRAIN_GFLOP * 1e9 * ((recipe.resolution or 512) / 512) ** 2
    return samples * work / (flops * EFFICIENCY[device])


def in_words(duration: float) -> str:
    """'40 minutes', '6 hours', '31 days'."""
    for unit, length in (("days", DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if duration >= 2 * length:
            return f"{duration / length:.0f} {unit}"
    return f"{duration:.0f} seconds"


def refuse_cpu_by_accident(recipe: Recipe, samples: int, flops: float) -> None:
    """SD1.5 on a CPU takes weeks: only who says so gets it. UsageError otherwise."""
    if recipe.base == MINIATURE:
        return
    raise UsageError(f"no GPU was found, and on this CPU the run would take about "
                     f"{in_words(seconds(recipe, samples, 'cpu', flops))}: give --device cpu if you mean it, or --demo for the "
                     "embedded miniature")


def report(recipe: Recipe, counted: Plan, device: str, flops: float) -> str:
    """The dry run's text."""
    settled = recipe.as_dict() | {"alpha": recipe.true_alpha, "resolution": side(recipe), "steps": counted.total_steps}
    lines = [f"{name:<16} {value}" for name, value in settled.items()]
    lines += ["", f"pictures         {counted.pictures}", f"optimizer steps  {counted.total_steps}",
              f"samples          {counted.samples}, each picture {counted.samples / counted.pictures:.4g} times",
              f"encoded set      {counted.latent_bytes / 2**20:.0f} MiB in fp16"]
    if recipe.base == MINIATURE:
        lines += ["memory           about 2 GiB", "time             a few minutes on two CPU cores"]
    else:
        memory = ("about 5 GiB of GPU memory at --micro-batch 1, about 3 with gradient checkpointing" if device == "cuda"
                  else "about 12 GiB")
        lines += [f"memory           {memory} (estimate)",
                  f"time             about {in_words(seconds(recipe, counted.samples, device, flops))} on this {device} "
                  f"({flops / 1e12:.2f} TFLOP/s in a matrix product; estimate)"]
    return "\n".join(lines)


