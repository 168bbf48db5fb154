"""Every random draw of training, by optimizer step: from (seed, step) alone, for the whole batch at once.

So a resumed run is the run, and micro-batches and processes, which take slices, do not change it. Drawn on the CPU,
where torch's generator gives the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.recipe import Recipe
from trainer.rng import Stream, generator_of
from trainer.training.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class Draw:
    """What step k trains on; B pictures, (batch x accumulation) or what an epoch's last step has left."""

    picture: Tensor
    """(B,) int64, rows of the encoded set"""
    view: Tensor
    """(B,) int64: 0 the picture, 1 its mirror image"""
    posterior: Tensor
    """(B, 4, h, w) float32, standard normal: the VAE's sample"""
    eps: Tensor
    """(B, 4, h, w) float32: the noise to be predicted"""
    timestep: Tensor
    """(B,) int64"""
    dropped: Tensor
    """(B,) bool: train on the empty caption instead"""

    def __len__(self) -> int:
        return len(self.picture)

    def take(self, rows: slice) -> Draw:
        return Draw(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def pinned(self) -> Draw:
        return Draw(*(getattr(self, name).pin_memory() for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Draw:
        return Draw(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


def draw_step(recipe: Recipe, step: int, *, pictures: int, views: int, latent: tuple[int, ...],
              schedule: NoiseSchedule) -> Draw:  # fmt: skip
    """The draws of optimizer step `step` (from 0) over `pictures` pictures; `latent` is (4, h, w)."""
    epoch, place = divmod(step, recipe.steps_per_epoch(pictures))
    whole = recipe.batch * recipe.accumulation
    order = np.random.default_rng([recipe.seed, Stream.ORDER, epoch]).permutation(pictures)
    rows = torch.from_numpy(order[place * whole : (place + 1) * whole])
    return _draw(generator_of(recipe.seed, Stream.STEP, step), rows, views, latent, schedule, offset=recipe.noise_offset,
                 dropout=recipe.caption_dropout)


class Prefetcher:
    """Draws of steps in order, each made by a thread while the step before runs, in memory that a GPU copies from.

    draw: a step's draw, by its number; the steps are `first` … `last` - 1.
    """

    def __init__(self, draw: Callable[[int], Draw], first: int, last: int, *, pinned: bool) -> None:
        self._draw, self._steps, self._pinned = draw, range(first, last), pinned

    def __iter__(self) -> Iterator[tuple[int, Draw]]:
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(self._make, step) for step in self._steps[:1]]
            for step in self._steps:
                draw = coming.pop().result()
                if step + 1 in self._steps:
                    coming.append(pool.submit(self._make, step + 1))
                yield step, draw

    def _make(self, step: int) -> Draw:
        draw = self._draw(step)
        return draw.pinned() if self._pinned else draw


def draw_held_out(recipe: Recipe, *, pictures: int, latent: tuple[int, ...], schedule: NoiseSchedule) -> Draw:
    """Fixed noise and timesteps for the held-out loss, one for each picture; timesteps spread evenly over the schedule."""
    generator = generator_of(recipe.seed, Stream.HELD_OUT)
    draw = _draw(generator, torch.arange(pictures), 1, latent, schedule, offset=recipe.noise_offset, dropout=0)
    return replace(draw, timestep=schedule.grid(pictures))




def _draw(generator: torch.Generator, rows: Tensor, views: int, latent: tuple[int, ...], schedule: NoiseSchedule, *,
          offset: float, dropout: float) -> Draw:  # fmt: skip
    count = len(rows)
    view = torch.randint(views, (count,), generator=generator)
    timestep = schedule.draw(generator, count)
    posterior = torch.randn(count, *latent, generator=generator)
    eps = torch.randn(count, *latent, generator=generator)
    if offset:
        eps = eps + offset * torch.randn(count, latent[0], 1, 1, generator=generator)
    dropped = torch.rand(count, generator=generator) < dropout
    return Draw(picture=rows, view=view, posterior=posterior, eps=eps, timestep=timestep, dropped=dropped)
