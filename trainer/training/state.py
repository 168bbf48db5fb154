"""A training: its settings, fixed before the first step, and its state, which every step changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from trainer.base.models import Predictor, UNet
from trainer.encoding.encoded_set import EncodedSet
from trainer.kernels.compile import MOST_SHAPES
from trainer.recipe import Recipe
from trainer.runs.record import Record
from trainer.training.devices import Compute
from trainer.training.draws import Draw, EpochOrder, draw_held_out, draw_step
from trainer.training.objective import Objective
from trainer.training.optim import Schedule, choose_optimizer, choose_schedules
from trainer.training.processes import Processes

COUNTED_STEPS = 64
"""Steps over which micro-batches are counted to find the most common kinds."""
Kind = tuple[int, tuple[int, ...], int]
"""A micro-batch's number of pictures, latent shape and chunks of a caption."""
Named = Sequence[tuple[str, torch.nn.Parameter]]
"""A LoRA's factors by peft's names."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything the training loop needs, fixed before it starts."""

    recipe: Recipe
    unet: UNet
    """diffusers' UNet2DConditionModel with peft's LoRA on it"""
    forward: Predictor
    """called instead of `unet` for the most common kinds of micro-batches: `unet` itself, or compiled"""
    least_passes: int = 0
    """how many micro-batches of a kind a run must have before `forward` is used for it, if there are several kinds"""
    kernels: AbstractContextManager[object]
    """reusable context manager around every forward and backward pass"""
    encoded: EncodedSet
    held_out: EncodedSet | None
    """None: no held-out loss"""
    objective: Objective
    schedules: tuple[Schedule, ...]
    """learning-rate schedules, one for each of the optimizer's groups, the UNet's first"""
    compute: Compute
    processes: Processes
    run: Path
    identity: Record = field(default_factory=dict)
    """the run's recipe, data and base as in recipe.json, recorded in every checkpoint"""
    total: int
    """optimizer steps of the whole run"""
    checkpoint_every: int
    """optimizer steps between checkpoints and held-out losses"""

    def draw(self, step: int) -> Draw:
        """The random draws of optimizer step `step`, for all processes."""
        return draw_step(self.recipe, step, order=self.order, views=self.encoded.mean.shape[1],
                         latent=tuple(self.encoded.mean.shape[2:]), schedule=self.objective.schedule)

    def draw_held_out(self, encoded: EncodedSet, pictures: int) -> Draw:
        """The fixed draws of the held-out loss on the first `pictures` of `encoded`."""
        return draw_held_out(self.recipe, pictures=pictures, latent=tuple(encoded.mean.shape[2:]),
                             schedule=self.objective.schedule)

    @cached_property
    def order(self) -> EpochOrder:
        return EpochOrder(self.recipe.seed, len(self.encoded), self.encoded.repeats, self.encoded.reg)

    def common_kinds(self, size: int) -> frozenset[Kind]:
        """The kinds of micro-batches, of at most `size` pictures each, for which `forward` is used: the full ones, or the
        most common if shapes or caption lengths differ.

        Always counted over the first steps' draws, so that a resumed run equals an uninterrupted one.
        """
        if self.encoded.uniform:  # the smaller rest at the end of an epoch is not worth compiling for
            return frozenset({(size, (), 1)})
        if size not in self._common:
            steps = min(self.total, COUNTED_STEPS)
            counts = Counter(part.kind for step in range(steps) for part in self._parts(step, size))
            often = [kind for kind, number in counts.items() if number * self.total >= self.least_passes * steps]
            self._common[size] = frozenset(sorted(often, key=lambda kind: (-counts[kind], kind))[:MOST_SHAPES])
        return self._common[size]

    def _parts(self, step: int, size: int) -> Iterator[Draw]:
        """This process's micro-batches of a step."""
        draw = self.draw(step)
        mine = draw.take(self.processes.slice_of(len(draw)))
        return mine.micro_batches(self.encoded.alike(mine.picture, mine.dropped, mine.choice), size)

    @cached_property
    def _common(self) -> dict[int, frozenset[Kind]]:
        return {}

    @property
    def schedule(self) -> Schedule:
        """The UNet's learning rate."""
        return self.schedules[0]

    @property
    def largest_step(self) -> int:
        """Pictures of the largest optimizer step, over all processes."""
        return min(self.recipe.batch * self.recipe.accumulation, len(self.order))


class State:
    """What changes from step to step: factors, gradients, optimizer, loss scaling, and the size of a micro-batch."""

    def __init__(self, training: Training, factors: Named, *, micro_batch: int = 0) -> None:
        device = training.compute.device
        self.step = 0
        """optimizer steps done"""
        self.micro_batch = micro_batch or training.largest_step
        self.factors = factors
        self.parameters = [factor for _, factor in factors]
        sizes = [factor.numel() for factor in self.parameters]
        # one buffer that the processes sum: every gradient, then the loss and the number of processes asked to stop
        self.reduce_buffer = torch.zeros(sum(sizes) + 2, device=device)
        self.gradient, self.loss_and_stop = self.reduce_buffer[:-2], self.reduce_buffer[-2:]
        for factor, part in zip(self.parameters, self.gradient.split(sizes), strict=True):
            factor.data = factor.data.contiguous()  # those of convolutions became channels_last with the UNet
            factor.grad = part.view_as(factor)
        self.optimizer = choose_optimizer(training.recipe, factors, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.compute.scaled)

    def factors_are_finite(self) -> bool:
        return all(bool(factor.isfinite().all()) for factor in self.parameters)


def prepare(*, recipe: Recipe, unet: UNet, factors: Named, total: int, forward: Predictor | None = None,
            kernels: AbstractContextManager[object] | None = None, **settings: Any) -> tuple[Training, State]:  # fmt: skip
    """A training at its start and its state. `kernels`: none by default; `settings`: the other fields."""
    training = Training(recipe=recipe, unet=unet, forward=forward or unet, kernels=kernels or nullcontext(),
                        total=total, schedules=choose_schedules(recipe, total), **settings)
    return training, State(training, factors)
