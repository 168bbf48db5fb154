"""A tiny Stable Diffusion with the miniature's architecture and random weights, and drawings for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data.records import Dataset, Drawing


def make_miniature(folder: Path) -> Path:
    """A random-weight miniature in diffusers layout."""
    from trainer.miniature import models
    from trainer.miniature.vocabulary import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder / "tokenizer")
    models.unet().save_pretrained(folder / "unet")
    models.vae().save_pretrained(folder / "vae")
    models.text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    models.noise_scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


@pytest.fixture(scope="session")
def random_miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_miniature(tmp_path_factory.mktemp("miniature"))


def make_dataset(count: int = 12, held_out: int = 4) -> Dataset:
    """Doodles of three categories, captioned as the paper does."""
    from trainer.miniature.doodles import doodle

    names = ["apple", "house", "star"]
    examples = []
    for i in range(count + held_out):
        name = names[i % 3]
        bitmap = doodle(name, np.random.default_rng([5, i])).tobytes()
        examples.append(Drawing(bitmap=bitmap, category=name, caption=f"a scribble of {name}", source=f"{name} {i}"))
    return Dataset(train=examples[:count], held_out=examples[count:], trigger="a scribble of", seen=names, unseen=["sun"])
