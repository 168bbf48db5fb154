"""What all tests share: as many threads as there are cores, and a random miniature."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; processes that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def random_miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's architecture with random weights, in diffusers layout. Only to be read."""
    import torch

    from trainer.miniature.build.procedural import models
    from trainer.miniature.build.procedural.vocabulary import build_tokenizer

    folder = tmp_path_factory.mktemp("miniature")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder / "tokenizer")
    models.unet().save_pretrained(folder / "unet")
    models.vae().save_pretrained(folder / "vae")
    models.text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    models.noise_scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder
