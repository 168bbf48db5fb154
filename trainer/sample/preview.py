"""The picture beside a LoRA: one prompt, seeds by scales, as in the paper's figure 5."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.base.load import Base
from trainer.data.records import Dataset, common_shape
from trainer.sample.grid import draw_grid, write_png
from trainer.sample.sampler import Sampler
from trainer.training.devices import Compute

SCALES = (0.0, 0.25, 0.5, 0.8, 1.0)

SEEDS = (0, 1, 2)


def prompt_for(dataset: Dataset) -> str:
    """What the preview shows: the trigger with the first category, or the first caption."""
    if dataset.seen:
        wanted = "apple" if "apple" in dataset.seen else dataset.seen[0]
        return f"{dataset.trigger} {wanted}".strip()
    return dataset.train[0].caption


def sampler_for(dataset: Dataset, base: Base, compute: Compute, resolution: int) -> Sampler:
    """A sampler for the shape that most training pictures have. resolution: 0 for the base's own."""
    height, width = common_shape(dataset.without_reg, resolution or base.resolution)
    return Sampler(base, compute, resolution=resolution, size=(width, height))


def preview(sampler: Sampler, prompt: str) -> np.ndarray:
    """uint8 (seeds, scales, H, W, 3): one prompt, as in the paper's figure 5."""
    columns = [sampler([prompt] * len(SEEDS), list(SEEDS), scale=scale) for scale in SCALES]
    return np.stack(columns, axis=1)


def write_preview(sampler: Sampler, dataset: Dataset, path: Path) -> None:
    """The labelled grid of seeds by scales, PNG."""
    prompt = prompt_for(dataset)
    sheet = draw_grid(preview(sampler, prompt), [f"seed {seed}" for seed in SEEDS],
                      [f"scale {scale:g}" for scale in SCALES], title=prompt)
    write_png(sheet, path)
