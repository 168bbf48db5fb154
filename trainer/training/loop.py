"""The training loop, and what it is built from once: optimizer, learning rate, objective."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convert.errors import JobError
from trainer.encoding.encoded_set import EncodedSet
from trainer.kernels import Fused
from trainer.recipe import Recipe
from trainer.training import checkpoints, micro_batch
from trainer.training.devices import Compute
from trainer.training.draws import Ahead, Draw, draw_held_out, draw_step
from trainer.training.journal import Journal, not_finite
from trainer.training.metrics import Metrics
from trainer.training.objective import Objective
from trainer.training.processes import Processes

Named = list[tuple[str, torch.nn.Parameter]]


@dataclass(kw_only=True)
class Training:
    """All that a loop needs, settled before it starts. `held_out` None: no held-out loss."""

    recipe: Recipe
    unet: Any
    factors: Named
    encoded: EncodedSet
    held_out: EncodedSet | None
    objective: Objective
    compute: Compute
    processes: Processes
    run: Path
    total: int
    checkpoint_every: int
    sample_every: int = 0
    sample: Callable[[int], None] = lambda step: None
    micro_batch: int = 0
    forward: Any = None
    """what is called instead of `unet` to train: it, compiled for parts of `micro_batch` pictures"""
    stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.micro_batch = self.micro_batch or self.recipe.batch
        self.forward = self.forward or self.unet
        self.fused = Fused(self.unet)
        self.parameters = [factor for _, factor in self.factors]
        for factor in self.parameters:  # those of convolutions became channels_last with the UNet
            factor.data = factor.data.contiguous()
        # one buffer for what processes add up: every gradient, then the loss and whether somebody asks to stop
        self.sums = torch.zeros(sum(p.numel() for p in self.parameters) + 2, device=self.compute.device)
        self.gradient, self.told = self.sums[:-2], self.sums[-2:]
        for factor, part in zip(self.parameters, self.gradient.split([p.numel() for p in self.parameters]), strict=True):
            factor.grad = part.view_as(factor)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay,
            fused=self.compute.device.type == "cuda")
        self.scaler = torch.amp.GradScaler(self.compute.device.type, enabled=self.compute.scaled)
        self.shape: dict[str, Any] = {"latent": tuple(self.encoded.mean.shape[2:]), "timesteps": self.objective.timesteps}


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """AdamW's rate at optimizer step `step` (from 0): linear warm-up, then half a cosine to 0 (diffusers' `cosine`)."""
    if step < recipe.warmup:
        return recipe.learning_rate * step / recipe.warmup
    progress = (step - recipe.warmup) / max(1, total - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(t: Training, metrics: Metrics | None, first: int) -> int:
    """Run optimizer steps `first` … `total` - 1; returns the steps done, fewer if a signal asked to stop.

    The host never waits for a step on the device: it reads a step's loss when the next one is under way.

    Raises:
        JobError: a step's loss or gradient, a held-out loss or the LoRA is not finite. Nothing of that is saved.
    """
    pictures, views = len(t.encoded), t.encoded.mean.shape[1]
    draws = Ahead(lambda k: draw_step(t.recipe, k, pictures=pictures, views=views, **t.shape), first, t.total,
                  pinned=t.compute.device.type == "cuda")
    journal = Journal(t, metrics)
    with _stopping(t), t.fused:
        for step, draw in draws:
            rate, done = learning_rate(t.recipe, step, t.total), step + 1
            _gradients(t, draw)
            norm = _update(t, rate)
            stopping = journal.write(done, rate, norm, len(draw))
            if done % t.checkpoint_every == 0 or done == t.total or stopping:
                stopping = journal.flush() or stopping
                _keep(t, metrics, done)
            if metrics and t.sample_every and done % t.sample_every == 0:
                stopping = journal.flush() or stopping
                with t.fused.paused():
                    t.sample(done)
                metrics.pause()
            if stopping:
                return done
    return t.total


def _gradients(t: Training, draw: Draw) -> None:
    """Leave the gradient of the batch's mean loss in the factors and the loss in `told`, summed over all processes."""
    whole = len(draw)
    mine = draw.take(t.processes.slice_of(whole)).to(t.compute.device)
    while True:
        try:
            t.sums.zero_()
            _micro_batches(t, mine, whole)
            break
        except torch.OutOfMemoryError as error:
            if t.micro_batch == 1:
                raise JobError("out of memory on a micro-batch of 1: close other programs, or give --resolution 256"
                               ) from error
            t.micro_batch = (t.micro_batch + 1) // 2  # the draws stay the same, so the step is the same up to rounding
            torch.cuda.empty_cache()
    if t.stopped and t.processes.count > 1:
        t.told[1] = 1
    t.processes.sum_(t.sums)


def _micro_batches(t: Training, mine: Draw, whole: int) -> None:
    for start in range(0, len(mine), t.micro_batch):
        part = mine.take(slice(start, start + t.micro_batch))
        # what is left over, at the end of an epoch, is computed plainly: compiling for its size too would take a minute
        forward = t.forward if len(part) == t.micro_batch else t.unet
        loss = t.objective.loss(forward, t.encoded, part).sum() / whole
        t.scaler.scale(loss).backward()
        t.told[0] += loss.detach()


def _update(t: Training, rate: float) -> torch.Tensor:
    """Clip and step; returns the gradient's norm before clipping, on the device."""
    for group in t.optimizer.param_groups:
        group["lr"] = rate
    t.scaler.unscale_(t.optimizer)
    norm = t.gradient.norm()
    t.gradient.mul_((t.recipe.clip_norm / (norm + 1e-6)).clamp(max=1))  # as torch.nn.utils.clip_grad_norm_
    t.scaler.step(t.optimizer)
    t.scaler.update()
    return norm


def _keep(t: Training, metrics: Metrics | None, done: int) -> None:
    held = held_out_loss(t) if t.held_out is not None else None
    if not all(bool(factor.isfinite().all()) for factor in t.parameters):
        raise not_finite(t.recipe, done, "the LoRA's numbers are not all finite")
    if held is not None and not math.isfinite(held):
        raise not_finite(t.recipe, done, f"the held-out loss is {held}")
    micro_batch.record(t)  # it may have been halved since
    if t.processes.main:
        checkpoints.save(t.run / "checkpoints", done, t.factors, t.optimizer, t.scaler.state_dict())
    if metrics:
        if held is not None:
            metrics.held_out(done, held)
        metrics.pause()
    t.processes.wait()


@torch.no_grad()
def held_out_loss(t: Training) -> float:
    """Mean loss on the held-out pictures, with noise and timesteps that never change during a run."""
    assert t.held_out is not None
    draw = draw_held_out(t.recipe, pictures=len(t.held_out), **t.shape)
    mine = draw.take(t.processes.slice_of(len(draw)))
    total = torch.zeros(1, device=t.compute.device)
    with t.fused:
        for start in range(0, len(mine), t.micro_batch):
            micro = mine.take(slice(start, start + t.micro_batch)).to(t.compute.device)
            total += t.objective.loss(t.unet, t.held_out, micro).sum()
    t.processes.sum_(total)
    return total.item() / len(draw)


class _stopping:
    """While open, Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C is the usual one."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __enter__(self) -> None:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: Any) -> None:
        self.training.stopped = True
        signal.signal(number, self.before[signal.Signals(number)])

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
