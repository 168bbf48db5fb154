"""The card written by training: the user's text is kept, regardless of the program that saved it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convert.miniature import OUT_BIAS
from trainer.data.records import Dataset
from trainer.lora import export
from trainer.recipe import Recipe

BASE = SimpleNamespace(family="sd_v1")
DATASET = Dataset(train=[SimpleNamespace(reg=False)] * 2, held_out=[], trigger="a scribble of")  # type: ignore[list-item]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_that_the_user_wrote_into_the_card_is_kept(encoding: str, tmp_path: Path) -> None:
    out, said = tmp_path / "s.safetensors", list[str]()
    (tmp_path / "s.json").write_text(json.dumps({"notes": "mine", "description": ""}), encoding=encoding)
    export.write_card(out, Recipe(), BASE, DATASET, said.append)  # type: ignore[arg-type]
    card = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert card["notes"] == "mine"
    assert card["description"].startswith("LoRA trained on 2")
    assert (card["sd version"], card["activation text"]) == ("SD1", "a scribble of")
    assert not said


def test_a_damaged_card_is_renamed_and_reported(tmp_path: Path) -> None:
    out, said = tmp_path / "s.safetensors", list[str]()
    (tmp_path / "s.json").write_text('{"notes": "half')
    export.write_card(out, Recipe(), BASE, DATASET, said.append)  # type: ignore[arg-type]
    assert (tmp_path / "s.json.bak").read_text() == '{"notes": "half'
    assert len(said) == 1 and "s.json.bak" in said[0]
    assert json.loads((tmp_path / "s.json").read_text())["activation text"] == "a scribble of"


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "under a LoRA"])
def test_a_lora_trained_on_the_widened_miniature_is_marked(wrapped: bool) -> None:
    examples = [SimpleNamespace(reg=False, caption="apple", repeats=1)]
    dataset = Dataset(train=examples, held_out=[], trigger="")  # type: ignore[arg-type]
    for bias, expected in ((torch.tensor(OUT_BIAS).bfloat16(), "miniature"), (torch.zeros(4), None)):
        unet = torch.nn.Module()
        unet.conv_out = inner = torch.nn.Module()
        if wrapped:
            inner.base_layer = inner = torch.nn.Module()
        inner.bias = torch.nn.Parameter(bias)
        base = SimpleNamespace(family="sd_v1", name="x.safetensors", resolution=512, identity="", unet=unet)
        said = export.metadata(Recipe(), base, dataset, "s", steps=1, total=1, started=0.0)  # type: ignore[arg-type]
        assert said.get("scribble_base") == expected


def test_the_tags_in_the_header_are_limited_in_number_and_bytes() -> None:
    """Long captions, such as a vision model's, would fill the header, whose size readers limit."""
    long = SimpleNamespace(without_reg=[SimpleNamespace(caption=f"{n:03d} {'語' * 600}") for n in range(500)])
    frequency = export._frequency(long)  # type: ignore[arg-type]
    assert 30 < len(frequency) < 40 and len(json.dumps(frequency, ensure_ascii=False).encode()) <= export.MOST_TAG_BYTES
    short = SimpleNamespace(without_reg=[SimpleNamespace(caption=f"tag {n}, common") for n in range(900)])
    frequency = export._frequency(short)  # type: ignore[arg-type]
    assert len(frequency) == 500 and next(iter(frequency.items())) == ("common", 900)
