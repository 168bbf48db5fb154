"""The benchmark's results, as one dictionary and as text."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from convert.errors import JobError
from trainer.benchmark import measure as clock
from trainer.benchmark.attention import race_attention
from trainer.benchmark.models import SIZES, Size, build_encoders, build_unet, counted_flops
from trainer.benchmark.steps import encoding, our_step, ours, plain_steps
from trainer.kernels.compile import Compiled
from trainer.kernels.cuda_graphs import Graphed
from trainer.plan import TRAIN_GFLOP, in_words
from trainer.recipe import Recipe
from trainer.training import devices
from trainer.training.state import State, Training

RECIPE_SAMPLES, RECIPE_INPUTS = 140_000, 4_000
"""The paper's recipe: training pictures, 70 epochs of 2,000; inputs of the VAE, the 2,000 and their mirror images."""
Say = Callable[[str], None]
Found = dict[str, Any]


def measure(options: Namespace, micro_batches: list[int], say: Say) -> Found:
    """Run the benchmark with the command line's `options`. JobError if memory is too small for every micro-batch."""
    if options.threads:
        torch.set_num_threads(options.threads)
    compute = devices.choose(options.device)
    on_cpu = compute.device.type == "cpu"
    name = options.size or ("quarter" if on_cpu else "sd15")
    resolution, rounds = options.resolution or SIZES[name].resolution, options.rounds or (2 if on_cpu else 5)
    recipe = Recipe(batch=options.batch, accumulation=options.accumulation)
    whole = recipe.batch * recipe.accumulation
    found: Found = {
        "device": clock.device_name(compute.device), "torch": torch.__version__, "dtype": str(compute.base_dtype)[6:],
        "size": name, "resolution": resolution, "pictures_per_step": whole, "rounds": rounds,
        "ceiling_tflops": devices.flops_per_second(compute) / 1e12,
        "gflop_per_picture": counted_flops(SIZES[name], resolution) / 1e9,
    }  # fmt: skip
    started = time.perf_counter()
    unet = build_unet(SIZES[name], compute.device, compute.base_dtype)
    training, state = ours(unet, recipe, compute, resolution, options.compile, options.cuda_graphs, options.cache,
                           say)
    default = [8, whole] if on_cpu else [1, 4, 8, whole]
    _time_micro_batches(found, training, state, micro_batches or default, started, say)
    best = max(found["micro_batches"], key=lambda row: row["pictures_per_second"])
    found["recipe_seconds"] = RECIPE_SAMPLES * TRAIN_GFLOP / (best["share_of_ceiling"] * found["ceiling_tflops"] * 1e3)
    state.micro_batch = best["micro_batch"]
    if options.profile:
        say("one step under the profiler …")
        found["profile"] = clock.profile(our_step(training, state), compute.device)
    say("attention kernels …")
    found["attention"] = race_attention(compute, pictures=2 if on_cpu else 8, tokens=(resolution // 8) ** 2,
                                        rounds=found["rounds"])
    if not options.no_plain:
        _time_others(found, training, state, SIZES[name], say)
    return found


def _time_micro_batches(found: Found, training: Training, state: State, sizes: list[int], started: float, say: Say) -> None:
    """Add our step's time at each micro-batch, and the time of the first step, to `found`."""
    forward = training.forward.forward if isinstance(training.forward, Graphed) else training.forward
    found["compiled"], found["micro_batches"] = isinstance(forward, Compiled) and bool(forward.blocks), []
    device, whole = training.compute.device, found["pictures_per_step"]
    for micro in dict.fromkeys(min(size, whole) for size in sizes):
        state.micro_batch = micro
        say(f"micro-batch {micro} …")
        clock.reset_peak(device)
        try:
            timing = clock.race({"ours": our_step(training, state)}, found["rounds"], device)["ours"]
        except JobError as error:
            say(str(error))
            break
        if "first_step_seconds" not in found:
            found["first_step_seconds"] = time.perf_counter() - started - found["rounds"] * timing.seconds
        found["micro_batches"].append(_row(state.micro_batch, timing, found, device))
        if state.micro_batch < micro:  # halved, because memory is too small
            break
    if not found["micro_batches"]:
        raise JobError("no micro-batch fits in memory here: give a smaller --size or --resolution")


def _time_others(found: Found, training: Training, state: State, size: Size, say: Say) -> None:
    """Add the speed of encoding, and the plain steps timed in alternation with ours, to `found`."""
    compute, resolution = training.compute, found["resolution"]
    encoders = build_encoders(size, compute.device, compute.base_dtype)
    say("the VAE …")
    encode, inputs = encoding(encoders.vae, compute, resolution, say)
    found["vae_inputs_per_second"] = inputs / clock.race({"vae": encode}, found["rounds"], compute.device)["vae"].seconds
    say("beside plain steps …")
    unet = build_unet(size, compute.device, compute.base_dtype)
    steps = plain_steps(unet, encoders, training.recipe, compute, resolution)
    timings = clock.race({"ours": our_step(training, state), **steps}, found["rounds"], compute.device)
    key = "cpu_seconds" if compute.device.type == "cpu" else "seconds"
    taken = {kind: getattr(timing, key) for kind, timing in timings.items()}
    found["against_plain"] = {"clock": key, **taken, "ratio": taken["ours"] / taken["plain"],
                              "ratio_cached": taken["ours"] / taken["plain_cached"]}  # fmt: skip


def _row(micro: int, timing: clock.Timing, found: Found, device: torch.device) -> Found:
    whole = found["pictures_per_step"]
    pace = whole / (timing.cpu_seconds / torch.get_num_threads() if device.type == "cpu" else timing.seconds)
    return {"micro_batch": micro, "seconds_per_step": timing.seconds, "cpu_seconds_per_step": timing.cpu_seconds,
            "pictures_per_second": whole / timing.seconds, "peak_gib": clock.peak_bytes(device) / 2**30,
            "share_of_ceiling": pace * found["gflop_per_picture"] / (found["ceiling_tflops"] * 1e3)}  # fmt: skip


def as_text(found: Found) -> str:
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
    lines += ["", f"first step        after {found['first_step_seconds']:.1f} s", f"the paper's recipe (SD1.5 at 512 px, "
              f"{RECIPE_SAMPLES:,} pictures) at the best of these shares: about {in_words(found['recipe_seconds'])}{estimate}"]
    lines += ["", "attention alone, forward and backward, heads 40 wide: "
              + ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in found["attention"].items())]
    if "against_plain" in found:
        lines += _others_as_text(found)
    if "profile" in found:
        lines += ["", "one step, by operation:", found["profile"]]
    return "\n".join(lines)


def _others_as_text(found: Found) -> list[str]:
    pair, rate = found["against_plain"], found["vae_inputs_per_second"]
    unit = "CPU-seconds" if pair["clock"] == "cpu_seconds" else "seconds"
    return [f"encoding          {rate:.1f} pictures of {found['resolution']} px a second; {RECIPE_INPUTS:,}, the recipe's, in "
            f"{in_words(RECIPE_INPUTS / rate)}",
            "", f"{unit} per step, in alternation",
            f"ours                                     {pair['ours']:8.2f}",
            f"diffusers' script's (VAE, CLIP, peft)    {pair['plain']:8.2f}   ours is {pair['ratio']:.2f} of it",
            f"the same with latents cached             {pair['plain_cached']:8.2f}   ours is {pair['ratio_cached']:.2f} of it"]
