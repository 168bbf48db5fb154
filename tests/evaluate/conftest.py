"""A random miniature, a random LoRA for it, a random CLIP and a folder of drawings: all the parts, seconds each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from convert import convert_file
from trainer.recipe import Recipe

CARD = {"description": "mine", "notes": "kept", "activation text": "a scribble of", "preferred weight": 0.7,
        "my own field": [1, 2]}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all tests here."""


@pytest.fixture(scope="session")
def base(random_base: Path) -> Path:
    return random_base


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights for 32-pixel pictures, with OpenAI's normalisation."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from tests.random_base import build_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty doodles of each of four categories, QuickDraw's layout."""
    from tests.drawings import drawing

    folder = tmp_path_factory.mktemp("drawings")
    for number, name in enumerate(["apple", "house", "star", "sun"]):
        rows = [drawing(name, np.random.default_rng([number, row])).reshape(-1) for row in range(20)]
        np.save(folder / f"{name}.npy", np.stack(rows))
    return folder


@pytest.fixture(scope="session")
def recipe(base: Path, drawings: Path) -> Recipe:
    return Recipe(base=str(base), data=str(drawings), categories="apple,house", per_category=4, rank=2)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, base: Path, recipe: Recipe) -> Path:
    """The LoRA that `lora` is a copy of."""
    from diffusers import UNet2DConditionModel

    from trainer.lora import adapter

    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    generator = torch.Generator().manual_seed(2)
    for name, factor in adapter.attach(unet, recipe):
        if ".lora_B." in name:
            factor.data = torch.randn(factor.shape, generator=generator) * 0.3
    folder = tmp_path_factory.mktemp("lora")
    path = folder / "tiny.safetensors"
    convert_file(adapter.save(unet, folder), path, metadata={
        "scribble_recipe": recipe.as_dict(), "ss_base_model_version": "like_sd_v1", "scribble_scale": 0.7,
        "modelspec.trigger_phrase": "a scribble of", "my own key": "kept"})  # fmt: skip
    return path


@pytest.fixture
def lora(tmp_path: Path, made: Path) -> Path:
    """A LoRA with a visible effect on the random base, its card beside it."""
    path = tmp_path / made.name
    shutil.copy(made, path)
    path.with_suffix(".json").write_text(json.dumps(CARD))
    return path
