"""What the benchmark found, as one dictionary and as text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from convert.errors import JobError
from trainer import devices
from trainer.benchmark import measure as clock
from trainer.benchmark.models import SIZES, build, counted_flops
from trainer.benchmark.steps import our_step, ours, plain_step
from trainer.plan import TRAIN_GFLOP, in_words
from trainer.recipe import Recipe

RECIPE_SAMPLES = 140_000
"""Pictures that the paper's recipe computes: 70 epochs of 2,000."""


def measure(options: Any, micro_batches: list[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Run what `options` (the command line's) ask for. JobError where memory does not suffice for any micro-batch."""
    if options.threads:
        torch.set_num_threads(options.threads)
    compute = devices.choose(options.device)
    on_cpu = compute.device.type == "cpu"
    name = options.size or ("quarter" if on_cpu else "sd15")
    size = SIZES[name]
    resolution, rounds = options.resolution or size.resolution, options.rounds or (2 if on_cpu else 5)
    recipe = Recipe(batch=options.batch, accumulation=options.accumulation)
    whole = recipe.batch * recipe.accumulation
    ceiling, flops = devices.flops_per_second(compute), counted_flops(size, resolution)
    models = build(size, compute.device, compute.base_dtype)
    started = time.perf_counter()
    training = ours(models, recipe, compute, resolution, options.compile, options.cache, say)
    found: dict[str, Any] = {
        "device": clock.device_name(compute.device), "torch": torch.__version__, "dtype": str(compute.base_dtype)[6:],
        "size": name, "resolution": resolution, "pictures_per_step": whole, "rounds": rounds,
        "ceiling_tflops": ceiling / 1e12, "gflop_per_picture": flops / 1e9, "compiled": bool(training.forward.blocks),
        "micro_batches": [],
    }  # fmt: skip
    default = [min(8, whole), whole] if on_cpu else [min(n, whole) for n in (1, 4, 8, whole)]
    for micro in dict.fromkeys(micro_batches or default):
        training.micro_batch = min(micro, whole)
        say(f"micro-batch {training.micro_batch} …")
        clock.reset_peak(compute.device)
        try:
            timing = clock.race({"ours": our_step(training)}, rounds, compute.device)["ours"]
        except JobError as error:
            say(str(error))
            break
        if "first_step_seconds" not in found:
            found["first_step_seconds"] = time.perf_counter() - started - rounds * timing.seconds
        found["micro_batches"].append(_row(training.micro_batch, timing, whole, flops, ceiling, compute.device))
        if training.micro_batch < micro:  # halved: memory does not hold more
            break
    if not found["micro_batches"]:
        raise JobError("no micro-batch fits in memory here: give a smaller --size or --resolution")
    best = max(found["micro_batches"], key=lambda row: row["pictures_per_second"])
    work = RECIPE_SAMPLES * TRAIN_GFLOP * 1e9
    found["recipe_seconds"] = work / (best["share_of_ceiling"] * ceiling)
    if not options.no_plain:
        say("beside the plain diffusers step …")
        training.micro_batch = best["micro_batch"]
        steps = {"plain": plain_step(models, recipe, compute, resolution), "ours": our_step(training)}
        timings = clock.race(steps, rounds, compute.device)
        key = "cpu_seconds" if on_cpu else "seconds"
        pair = {kind: getattr(timing, key) for kind, timing in timings.items()}
        found["against_plain"] = {"clock": key, **pair, "ratio": pair["ours"] / pair["plain"]}
    return found


def _row(micro: int, timing: clock.Timing, whole: int, flops: float, ceiling: float, device: torch.device) -> dict[str, Any]:
    pace = whole / (timing.cpu_seconds / torch.get_num_threads() if device.type == "cpu" else timing.seconds)
    return {"micro_batch": micro, "seconds_per_step": timing.seconds, "cpu_seconds_per_step": timing.cpu_seconds,
            "pictures_per_second": whole / timing.seconds, "share_of_ceiling": pace * flops / ceiling,
            "peak_gib": clock.peak_bytes(device) / 2**30}  # fmt: skip


def as_text(found: dict[str, Any]) -> str:
    compiled = ", compiled" if found["compiled"] else ""
    lines = [
        f"device            {found['device']}, torch {found['torch']}, {found['dtype']}{compiled}",
        f"matrix product    {found['ceiling_tflops']:.3f} TFLOP/s measured: the ceiling",
        f"model             {found['size']}, random weights, {found['resolution']} px, {found['pictures_per_step']} pictures a "
        f"step, {found['gflop_per_picture']:.1f} GFLOP a picture",
        "", "micro-batch   pictures/s   s/step   CPU s/step   of the ceiling   peak memory",
    ]  # fmt: skip
    for row in found["micro_batches"]:
        lines.append(f"{row['micro_batch']:>11} {row['pictures_per_second']:>12.2f} {row['seconds_per_step']:>8.2f} "
                     f"{row['cpu_seconds_per_step']:>12.2f} {row['share_of_ceiling']:>15.0%} {row['peak_gib']:>9.2f} GiB")
    estimate = "" if found["size"] == "sd15" else " (estimate: another model was timed)"
    lines += ["", f"first step after {found['first_step_seconds']:.1f} s", f"the paper's recipe (SD1.5 at 512 px, "
              f"{RECIPE_SAMPLES:,} pictures) at the best of these shares: about {in_words(found['recipe_seconds'])}{estimate}"]
    if "against_plain" in found:
        pair = found["against_plain"]
        unit = "CPU-seconds" if pair["clock"] == "cpu_seconds" else "seconds"
        lines.append(f"{unit} per step in alternation: diffusers' plain step {pair['plain']:.2f}, ours {pair['ours']:.2f}: "
                     f"{pair['ratio']:.2f} of it")
    return "\n".join(lines)
