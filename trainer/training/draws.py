"""Every random draw of training, by optimizer step: depends only on (seed, step), and covers the whole batch.

So a resumed run equals an uninterrupted one, and micro-batches and processes, which take slices, do not change the result.
Drawn on the CPU, where torch's generator gives the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """The draws of step k for B pictures: batch x accumulation, or those left for an epoch's last step."""

    picture: Tensor
    """(B,) int64, rows of the encoded set"""
    view: Tensor
    """(B,) int64: 0 the picture, 1 its mirror image"""
    posterior: Tensor
    """(B, 4, h, w) float32, standard normal: the VAE's sample; (B, 4, 1, n) for pictures of several shapes"""
    eps: Tensor
    """shaped like `posterior`: the noise to predict"""
    timestep: Tensor
    """(B,) int64"""
    dropped: Tensor
    """(B,) bool: train on the empty caption instead"""
    choice: Tensor
    """(B,) float32, from 0 to below 1: which of a picture's captions"""
    shape: tuple[int, ...] = ()
    """of a micro-batch: latent height and width; () for those stored in the encoded set"""
    chunks: int = 1
    """of a micro-batch: chunks of each caption"""

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def kind(self) -> tuple[int, tuple[int, ...], int]:
        """Of a micro-batch: number of pictures, latent shape, chunks. Kernels are compiled separately for each kind."""
        return len(self), tuple(self.shape), self.chunks

    def _each(self, change: Callable[[Tensor], Tensor]) -> Draw:
        tensors = {name: value for name in self.__dataclass_fields__ if isinstance(value := getattr(self, name), Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})  # type: ignore[arg-type]

    def take(self, rows: slice | Tensor) -> Draw:
        return self._each(lambda tensor: tensor[rows])

    def pinned(self) -> Draw:
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Draw:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def micro_batches(self, alike: list[tuple[Tensor, tuple[int, ...], int]], size: int) -> Iterator[Draw]:
        """Parts of at most `size` pictures, each with one shape and caption length, from `EncodedSet.alike` of this draw.

        The grouping does not change the gradient, which is the mean over all pictures.
        """
        for rows, shape, chunks in alike:
            for begin in range(0, len(rows), size):
                some = slice(begin, begin + size)
                part = self.take(some if len(alike) == 1 else rows[some].to(self.picture.device))
                yield replace(part, shape=shape, chunks=chunks)


class EpochOrder:
    """The shuffled rows of an epoch, each picture as often as its repeats.

    Pictures for regularisation are drawn as often as all the others together, in rotation across epochs, so that all of them
    are used equally (DreamBooth's prior preservation, Ruiz et al. 2022, section 4.2).
    """

    def __init__(self, seed: int, pictures: int, repeats: Sequence[int] = (), reg: Sequence[bool] = ()) -> None:
        self.seed = seed
        flags = np.array(reg or [False] * pictures, dtype=bool)
        self.own = np.repeat(np.flatnonzero(~flags), np.array(repeats or [1] * pictures, dtype=np.int64)[~flags])
        regs = np.flatnonzero(flags)
        self.regs = np.random.default_rng([seed, Stream.REGULARISATION]).permutation(regs) if len(regs) else regs

    def __len__(self) -> int:
        return len(self.own) * (2 if len(self.regs) else 1)

    def rows(self, epoch: int) -> np.ndarray:
        """(len(self),) int64."""
        rows = self.own
        if len(self.regs):
            turns = np.arange(epoch * len(self.own), (epoch + 1) * len(self.own)) % len(self.regs)
            rows = np.concatenate([rows, self.regs[turns]])
        return rows[np.random.default_rng([self.seed, Stream.ORDER, epoch]).permutation(len(rows))]


def draw_step(recipe: Recipe, step: int, *, order: EpochOrder, views: int, latent: tuple[int, ...],
              schedule: NoiseSchedule) -> Draw:  # fmt: skip
    """The draws of optimizer step `step` (from 0); `latent` is (4, h, w), or (4, 1, n) for pictures of several shapes."""
    epoch, place = divmod(step, recipe.steps_per_epoch(len(order)))
    whole = recipe.batch * recipe.accumulation
    rows = torch.from_numpy(order.rows(epoch)[place * whole : (place + 1) * whole])
    return _draw(generator_of(recipe.seed, Stream.STEP, step), rows, views, latent, schedule, offset=recipe.noise_offset,
                 dropout=recipe.caption_dropout)


class Prefetcher:
    """Makes each step's draw in a thread while the step before runs, in pinned memory if requested.

    draw: returns a step's draw by its number; the steps are `first` … `last` - 1.
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
    choice = torch.rand(count, generator=generator)
    return Draw(picture=rows, view=view, posterior=posterior, eps=eps, timestep=timestep, dropped=dropped, choice=choice)
