"""Samples and LoRA files during a run, each at an interval of optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.base.load import Base
from trainer.cli import Job
from trainer.data.records import Dataset
from trainer.lora import adapter
from trainer.lora.saves import PeriodicSaves
from trainer.recipe import Recipe
from trainer.sample.preview import sampler_for, write_preview
from trainer.sample.prompts import read_prompts, write_samples
from trainer.training.devices import Compute


@dataclass(frozen=True)
class Every:
    """Calls `act` with the number of steps done, every `steps` steps."""

    steps: int
    act: Callable[[int], None]

    def __call__(self, done: int) -> None:
        if done % self.steps == 0:
            self.act(done)

    def resume(self, done: int) -> None:
        """Called with the steps done when a run starts or continues."""
        if done and done % self.steps == 0 and isinstance(self.act, PeriodicSaves):
            self.act.resume(done)


@dataclass(frozen=True)
class Samples:
    """Draws the preview's grid, or the user's own prompts, with the current LoRA, then restores full scale."""

    base: Base
    draw: Callable[[int], None]
    folder: Path

    def __call__(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.draw(step)
        adapter.set_scale(self.base.unet, 1.0)
        adapter.set_text_scale(self.base.text_encoder, 1.0)


def choose_actions(recipe: Recipe, job: Job, base: Base, dataset: Dataset, compute: Compute, *, total: int,
                   started: float) -> list[Every]:  # fmt: skip
    """The periodic actions of `job`, for the first process only."""
    actions = []
    save_every = job.save_every or job.save_every_epochs * recipe.steps_per_epoch(dataset.per_epoch)
    if save_every:
        assert job.out is not None
        folder = job.save_to or job.run / "loras"
        actions.append(Every(save_every, PeriodicSaves(recipe, base, dataset, folder, job.out.stem, total, started)))
    if job.sample_every:
        sampler, folder = sampler_for(dataset, base, compute, recipe.resolution), job.run / "samples"
        prompts = read_prompts(job.sample_prompts) if job.sample_prompts else []

        def draw(step: int) -> None:
            if prompts:
                write_samples(sampler, prompts, folder, step)
            else:
                write_preview(sampler, dataset, folder / f"step-{step:06d}.png")

        actions.append(Every(job.sample_every, Samples(base, draw, folder)))
    return actions
