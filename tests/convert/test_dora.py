"""DoRA: what is kept, what is refused and why."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert
from convert.sd15 import modules

LINEAR = modules()[
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
]  # square: only the magnitude's shape shows the axis
CONV = modules()["down_blocks.0.resnets.0.conv1"]


def _write(maker, path, form, suffix, magnitude, **metadata):
    tensors = maker.tensors(form, [LINEAR, CONV])
    for module in (LINEAR, CONV):
        name = maker.spellings[form](module, "down").split(".lora_")[0]
        tensors[f"{name}.{suffix}"] = magnitude(module)
    save_file(tensors, path, metadata)
    return path


def _columns(module):
    return torch.rand(1, module.shape[1], *(1 for _ in module.shape[2:]))


def _rows(module):
    return torch.rand(module.shape[0], 1, *(1 for _ in module.shape[2:]))


def _peft(module):
    return torch.rand(module.shape[0]) if len(module.shape) == 2 else torch.rand(1, module.shape[0], 1, 1)


def test_magnitudes_per_input_column_pass_within_kohya_and_nowhere_else(maker, tmp_path):
    source = _write(maker, tmp_path / "in.safetensors", "kohya", "dora_scale", _columns)
    convert.convert_file(source, tmp_path / "out.safetensors")
    before, after = load_file(source), load_file(tmp_path / "out.safetensors")
    for key in before:
        assert torch.equal(before[key], after[key])
    for form in ("diffusers", "peft"):
        with pytest.raises(convert.JobError, match="per input column"):
            convert.convert_file(source, tmp_path / "other", to=form)


@pytest.mark.parametrize(
    "suffix", ["lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight"]
)
def test_pefts_magnitudes_pass_to_diffusers_and_are_refused_for_kohya(suffix, maker, tmp_path):
    source = _write(maker, tmp_path / "in.safetensors", "peft", suffix, _peft)
    with pytest.raises(convert.JobError, match=r"per output row .* convert\.bake"):
        convert.convert_file(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    convert.convert_file(source, tmp_path / "d.safetensors", to="diffusers")
    convert.convert_file(tmp_path / "d.safetensors", tmp_path / "p", to="peft")
    before, after = load_file(source), load_file(tmp_path / "p" / "adapter_model.safetensors")
    for module in (LINEAR, CONV):
        name = f"base_model.model.{module.name}"
        assert torch.equal(before[f"{name}.{suffix}"], after[f"{name}.lora_magnitude_vector"])
    assert json.loads((tmp_path / "p" / "adapter_config.json").read_text())["use_dora"] is True


def test_lycoris_magnitudes_per_row_become_pefts_and_stay_in_kohya_with_a_note(maker, tmp_path):
    source = _write(maker, tmp_path / "in.safetensors", "kohya", "dora_scale", _rows)
    report = convert.convert_file(source, tmp_path / "out.safetensors")
    assert any("one per output row" in str(note) for note in report.notes)
    convert.convert_file(source, tmp_path / "p", to="peft")
    before, after = load_file(source), load_file(tmp_path / "p" / "adapter_model.safetensors")
    for module in (LINEAR, CONV):
        scale = before[maker.spellings["kohya"](module, "dora_scale")]
        assert torch.equal(after[f"base_model.model.{module.name}.lora_magnitude_vector"].flatten(), scale.flatten())


def test_check_says_what_a_dora_cannot_become(maker, tmp_path):
    from convert.check import check

    audit = check(_write(maker, tmp_path / "in.safetensors", "peft", "lora_magnitude_vector", _peft))
    assert audit.sound
    assert audit.dora
    assert list(audit.cannot_become) == ["kohya"]
