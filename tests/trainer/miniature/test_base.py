"""The narrow miniature as a base: training on it gives a LoRA of SD1.5's shape, which can be applied to it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import convert
from convert import sd15
from convert.errors import JobError
from trainer.__main__ import main
from trainer.base.load import Base, load_base
from trainer.base.sd15 import SCRIBBLE_NARROW
from trainer.lora.lora_file import read_lora
from trainer.miniature import drawings
from trainer.miniature.narrow import narrow_text_encoder, narrow_unet, narrow_vae
from trainer.miniature.packed import EMBEDDING, pack, write_narrow
from trainer.recipe import Recipe


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    states = {part: {name.removeprefix("text_model."): p.data for name, p in model.named_parameters()}
              for part, model in (("unet", narrow_unet()), ("text_encoder", narrow_text_encoder()), ("vae", narrow_vae()))}
    del states["text_encoder"][EMBEDDING]
    path = tmp_path_factory.mktemp("narrow") / "narrow.safetensors"
    write_narrow(path, pack(states, torch.randn(3, 64) / 10, [1125, 3055]), ["apple"], {})
    return path


@pytest.fixture(scope="module")
def trained(packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on two drawings of two words."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    for word in ("apple", "star"):
        np.save(folder / "data" / f"{word}.npy", drawings.drawings(word)[:4].reshape(-1, 784))
    assert main(["--out", str(folder / "s.safetensors"), "--run", str(folder / "run"), "--base", str(packed), "--device", "cpu",
                 "--data", str(folder / "data"), "--categories", "apple,star", "--per-category", "1", "--resolution", "64",
                 "--batch", "2", "--accumulation", "1", "--steps", "2", "--learning-rate", "1e-2", "--no-preview",
                 "--cache", str(folder / "cache")]) == 0
    return folder / "s.safetensors"


def base_of(packed: Path) -> Base:
    return load_base(Recipe(base=str(packed)), dtype=torch.float32, say=print)


def test_the_narrow_file_is_a_base_with_clips_tokens(packed) -> None:
    base = base_of(packed)
    assert base.family == SCRIBBLE_NARROW and base.resolution == 128
    assert base.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_prompts_that_name_nothing_it_can_draw_are_reported(packed) -> None:
    base = base_of(packed)
    prompts = ["a scribble of apple", "two apples", "a scribble of fox", "pineapple"]
    assert base.words == ("apple",) and base.without_words(prompts) == ["a scribble of fox", "pineapple"]


def test_its_lora_has_sd15s_shapes_for_hosts_and_names_its_base(trained) -> None:
    lora = convert.read(trained)
    assert lora.base == "sd_v1" and len(lora.modules) == 128 and lora.rank == 4
    assert all(module.shape == module.module.shape and module.module.scope == sd15.UNET for module in lora.modules.values())
    assert lora.metadata["scribble_base"] == lora.metadata["ss_sd_model_name"] == "miniature"
    assert lora.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_the_wide_file_draws_the_same_on_the_narrow_base(packed, trained) -> None:
    base = base_of(packed)
    torch.manual_seed(1)
    x, t, states = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 64)
    with torch.no_grad():
        plain = base.unet(x, t, states).sample
        read_lora(trained).attach(base)
        read_back = base.unet(x, t, states).sample
        other = base_of(packed).unet
        other.load_lora_adapter(trained.parent / "run", weight_name="pytorch_lora_weights.safetensors", prefix="unet")
        as_trained = other(x, t, states).sample
    assert torch.allclose(read_back, as_trained, atol=1e-5)
    assert (read_back - plain).abs().max() > 1e-3


def test_another_sd15_lora_is_refused_on_it(packed, trained, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor + torch.randn_like(tensor) if name.endswith("up.weight") else tensor
               for name, tensor in load_file(trained).items()}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(JobError, match="was trained on a full-size checkpoint"):
        read_lora(tmp_path / "other.safetensors").attach(base_of(packed))
