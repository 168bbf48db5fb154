"""The training loop: each optimizer step is fetched, computed, applied, reported, evaluated and saved, in this order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.memory import halving
from trainer.training import checkpoints, micro_batch
from trainer.training.deferred import DeferredMetrics, Report, not_finite
from trainer.training.draws import Draw, Prefetcher
from trainer.training.optim import effective_rate
from trainer.training.state import State, Training


@dataclass(frozen=True)
class Step:
    """A completed optimizer step, after any evaluation and checkpoint. Equal in all processes."""

    done: int
    """optimizer steps done, including this one"""
    reports: list[Report]
    """reports that have arrived since the last `Step`, usually of the step before"""
    held_out: float | None
    """the held-out loss, if it was due"""
    saved: bool
    stopped: bool
    """whether this is the last step because a stop was requested"""


def train(t: Training, state: State, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
    """Run optimizer steps `state.step` … `t.total` - 1, yielding after each.

    stop: returns True once this process is asked to stop; all processes then end after the same step, which is saved.

    Raises:
        JobError: a loss, a gradient or a factor is not finite, or memory is too small for a micro-batch of 1. That step is
            not saved.
    """
    deferred = DeferredMetrics(t.recipe, t.compute.device, scaled=t.compute.scaled)
    for step, draw in Prefetcher(t.draw, state.step, t.total, pinned=t.compute.device.type == "cuda"):
        start = deferred.now()

        # loss and backward
        backward(t, state, draw, stop_asked=stop())

        # update
        norm = update(t, state, step)
        state.step = step + 1

        # report: by now the numbers of the step before have arrived
        deferred.push(step=state.step, learning_rate=effective_rate(state.optimizer), pictures=len(draw),
                      loss_and_stop=state.loss_and_stop, norm=norm, start=start)
        reports = deferred.read(keep=1)
        stopping = any(report.stop_asked for report in reports) if t.processes.count > 1 else stop()

        # evaluate and save; after a stop save first, and evaluate only if due
        due = state.step % t.checkpoint_every == 0 or state.step == t.total
        held_out = None
        if due or stopping:
            reports += deferred.read(keep=0)
            stopping = stopping or any(report.stop_asked for report in reports)
            held_out = evaluate_and_save(t, state, evaluate=due, save_first=stopping)

        yield Step(state.step, reports, held_out, saved=due or stopping, stopped=stopping and state.step < t.total)
        if stopping:
            return


def backward(t: Training, state: State, draw: Draw, *, stop_asked: bool = False) -> None:
    """Compute the gradient of the mean loss over `draw` (all processes' pictures) into `state.gradient`, with the loss."""
    here = draw.take(t.processes.slice_of(len(draw)))
    alike = t.encoded.alike(here.picture, here.dropped, here.choice)
    mine = here.to(t.compute.device)

    def in_micro_batches(size: int) -> None:
        state.reduce_buffer.zero_()
        common = t.common_kinds(size)
        for part in mine.micro_batches(alike, size):
            forward = t.forward if part.kind in common else t.unet
            loss = t.objective.loss(forward, t.encoded, part).sum() / len(draw)
            state.scaler.scale(loss).backward()
            state.loss_and_stop[0] += loss.detach()

    with t.kernels:
        _, state.micro_batch = halving(in_micro_batches, state.micro_batch, what="a micro-batch of 1",
                                       advice="close other programs, or give --resolution 256")
    state.loss_and_stop[1] = float(stop_asked)
    t.processes.all_reduce_sum(state.reduce_buffer)


def update(t: Training, state: State, step: int) -> Tensor:
    """Clip the gradient and take an optimizer step at the rates of `step`; returns the norm before clipping, on the device."""
    for group, schedule in zip(state.optimizer.param_groups, t.schedules, strict=True):
        group["lr"] = schedule(step)
    state.scaler.unscale_(state.optimizer)
    norm = state.gradient.norm()
    state.gradient.mul_((t.recipe.clip_norm / (norm + 1e-6)).clamp(max=1))  # torch.nn.utils.clip_grad_norm_, on the buffer
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return norm


def evaluate_and_save(t: Training, state: State, *, evaluate: bool, save_first: bool = False) -> float | None:
    """Measure the held-out loss if `evaluate`, and write a checkpoint. JobError if a number is not finite.

    save_first: save before evaluating, because after a stop the process may soon be killed.
    """
    if not state.factors_are_finite():
        raise not_finite(t.recipe, state.step, "the LoRA's numbers are not all finite")
    if save_first:
        _save(t, state)
    held_out = held_out_loss(t, state) if evaluate and t.held_out is not None else None
    if held_out is not None and not math.isfinite(held_out):
        raise not_finite(t.recipe, state.step, f"the held-out loss is {held_out}")
    if not save_first:
        _save(t, state)
    return held_out


def _save(t: Training, state: State) -> None:
    if t.processes.main:
        checkpoints.save(t.run / "checkpoints", state, t.identity, micro_batch.device_name(t.compute.device))
    t.processes.wait()


@torch.no_grad()
def held_out_loss(t: Training, state: State) -> float:
    """Mean loss on the held-out pictures, with noise and timesteps that never change during a run."""
    assert t.held_out is not None
    draw = t.draw_held_out(t.held_out, len(t.held_out))
    mine = draw.take(t.processes.slice_of(len(draw)))
    alike = t.held_out.alike(mine.picture, mine.dropped, mine.choice)
    total = torch.zeros(1, device=t.compute.device)
    with t.kernels:
        for part in mine.micro_batches(alike, state.micro_batch):
            total += t.objective.loss(t.unet, t.held_out, part.to(t.compute.device)).sum()
    t.processes.all_reduce_sum(total)
    return total.item() / len(draw)
