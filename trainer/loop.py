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
from trainer import checkpoints
from trainer.devices import Compute
from trainer.draws import Draw, draw_held_out, draw_step
from trainer.encode import EncodedSet
from trainer.metrics import Metrics
from trainer.objective import Objective
from trainer.processes import Processes
from trainer.recipe import Recipe

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
    stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.micro_batch = self.micro_batch or self.recipe.batch
        self.parameters = [factor for _, factor in self.factors]
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

    Raises:
        JobError: the loss of a step is not finite.
    """
    pictures, views = len(t.encoded), t.encoded.mean.shape[1]
    with _stopping(t):
        for step in range(first, t.total):
            rate = learning_rate(t.recipe, step, t.total)
            draw = draw_step(t.recipe, step, pictures=pictures, views=views, **t.shape)
            loss = _gradients(t, draw)
            if not math.isfinite(loss):
                raise JobError(f"step {step + 1}: the loss is {loss}: training stopped; the last checkpoint is kept. "
                               f"Lower --learning-rate ({t.recipe.learning_rate})")
            norm = _update(t, rate)
            done = step + 1
            if metrics:
                metrics.step(done, loss=loss, learning_rate=rate, grad_norm=norm, pictures=len(draw))
            stopping = t.processes.any(t.stopped, t.compute.device)
            if done % t.checkpoint_every == 0 or done == t.total or stopping:
                _keep(t, metrics, done)
            if metrics and t.sample_every and done % t.sample_every == 0:
                t.sample(done)
                metrics.pause()
            if stopping:
                return done
    return t.total


def _gradients(t: Training, draw: Draw) -> float:
    """Leave the gradient of the batch's mean loss in the factors, summed over micro-batches and processes."""
    whole = len(draw)
    mine = draw.take(t.processes.slice_of(whole))
    while True:
        try:
            t.optimizer.zero_grad(set_to_none=False)
            total = _micro_batches(t, mine, whole)
            break
        except torch.OutOfMemoryError as error:
            if t.micro_batch == 1:
                raise JobError("out of memory on a micro-batch of 1: close other programs, or give --resolution 256"
                               ) from error
            t.micro_batch //= 2  # the draws stay the same, so the step is the same up to rounding
            torch.cuda.empty_cache()
    for parameter in t.parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    t.processes.sum_([p.grad for p in t.parameters if p.grad is not None] + [total])
    return total.item()


def _micro_batches(t: Training, mine: Draw, whole: int) -> torch.Tensor:
    total = torch.zeros(1, device=t.compute.device)
    for start in range(0, len(mine), t.micro_batch):
        micro = mine.take(slice(start, start + t.micro_batch)).to(t.compute.device)
        with t.compute.context():
            loss = t.objective.loss(t.unet, t.encoded, micro).sum() / whole
        t.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _update(t: Training, rate: float) -> float:
    """Clip and step; returns the gradient's norm before clipping."""
    for group in t.optimizer.param_groups:
        group["lr"] = rate
    t.scaler.unscale_(t.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(t.parameters, t.recipe.clip_norm)
    t.scaler.step(t.optimizer)
    t.scaler.update()
    return norm.item()


def _keep(t: Training, metrics: Metrics | None, done: int) -> None:
    held = held_out_loss(t) if t.held_out is not None else None
    if t.processes.main:
        checkpoints.save(t.run / "checkpoints", done, t.factors, t.optimizer)
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
    for start in range(0, len(mine), t.micro_batch):
        micro = mine.take(slice(start, start + t.micro_batch)).to(t.compute.device)
        with t.compute.context():
            total += t.objective.loss(t.unet, t.held_out, micro).sum()
    t.processes.sum_([total])
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
