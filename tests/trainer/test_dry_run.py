"""The dry run counts the same as the run, and imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.__main__ import main
from trainer.base.facts import BaseFacts
from trainer.base.sd15 import NARROW_TEXT_CONFIG, NARROW_UNET_CONFIG, TEXT_CONFIG, UNET_CONFIG
from trainer.layers import TARGETS
from trainer.lora import adapter, targets
from trainer.miniature import narrow
from trainer.recipe import Recipe


def test_it_counts_without_training(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--device", "cpu", "--cache", "cache"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"drawings +2,000 of QuickDraw", told) and re.search(r"to fetch +100 categories", told)
    assert "optimizer steps  4410" in told and "samples          140000" in told
    assert "128 modules, 797,184 numbers" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [
    ["--base", "nowhere.safetensors"], ["--data-url", "ftp://x"], ["--categories", "nothing"], ["--out", "lora.pt"],
    ["--data", "nowhere"], ["--demo", "--categories", "101"], ["--targets", "nothing"],
])
def test_it_names_the_errors_that_a_run_would_hit(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["--dry-run", "--device", "cpu", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_loads_nothing_heavy() -> None:
    code = ("import sys; from trainer.__main__ import main; main(['--dry-run', '--device', 'cpu']); "
            "print([name for name in ('torch', 'diffusers', 'transformers', 'matplotlib') if name in sys.modules])")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[]"


@pytest.mark.parametrize("names", [*TARGETS, r"mid_block\..*to_q|.*conv_shortcut|time_embedding\.linear_1"])
@pytest.mark.parametrize(("unet_config", "text_config"), [(UNET_CONFIG, TEXT_CONFIG), (NARROW_UNET_CONFIG, NARROW_TEXT_CONFIG)])
def test_it_counts_the_modules_and_numbers_that_a_run_trains(names: str, unet_config: dict, text_config: dict) -> None:
    recipe = Recipe(targets=names, rank=4, conv_rank=2, text_encoder=True, clip_skip=2)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        text = CLIPTextModel(CLIPTextConfig(**text_config | {"num_hidden_layers": text_config["num_hidden_layers"] - 1}))
        weights = [layer.weight.shape for layer in adapter.layers(unet, recipe).values()]
        shapes = [(shape, targets.kernel_of(shape)) for shape in weights]
        shapes += [(m.weight.shape, 1) for name, m in text.named_modules() if re.fullmatch(adapter.TEXT_TARGETS, name)]
    numbers = sum(recipe.rank_of(kernel) * (shape.numel() // shape[0] + shape[0]) for shape, kernel in shapes)
    facts = BaseFacts("", read_tokenizer=lambda: pytest.fail("not needed"), unet=unet_config, text=text_config)
    assert targets.count(recipe, facts) == (len(shapes), numbers)


def test_the_stored_configuration_equals_the_narrow_networks() -> None:
    with torch.device("meta"):
        unet, text = narrow.narrow_unet().config, narrow.narrow_text_encoder().config
    for key in ("block_out_channels", "cross_attention_dim", "sample_size", "attention_head_dim", "norm_num_groups"):
        value = unet[key]
        assert (list(value) if isinstance(value, tuple) else value) == NARROW_UNET_CONFIG[key]
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings",
                "vocab_size", "hidden_act"):
        assert getattr(text, key) == NARROW_TEXT_CONFIG[key]
