"""The miniature and its LoRAs are distinguished from Stable Diffusion 1.5's, whose names and shapes they have."""

import pytest
import torch
from safetensors.torch import save_file

import convert
from convert import merge as merging
from convert import miniature
from convert.check import check, table
from convert.extract import extract
from convert.matrix.low_rank import Limit

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MODULE = "lora_unet_" + Q.replace(".", "_")
OURS, KOHYAS = {"scribble_base": "miniature"}, {"ss_sd_model_name": "scribble-miniature.safetensors"}


def _lora(path, metadata, width=320):
    factors = {f"{MODULE}.lora_down.weight": torch.ones(4, width), f"{MODULE}.lora_up.weight": torch.ones(width, 4)}
    save_file(factors, path, metadata)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_fingerprint_survives_a_cast(dtype, tmp_path):
    bias = torch.tensor(miniature.OUT_BIAS).to(dtype)
    save_file({miniature.OUT_BIAS_KEY: bias}, tmp_path / "checkpoint.safetensors")
    assert miniature.is_miniature(bias.float().tolist()) and miniature.is_miniature_file(tmp_path / "checkpoint.safetensors")


def test_another_bias_is_another_model(tmp_path):
    a, b, c, d = miniature.OUT_BIAS
    for other in ((a, b, c, d * 1.01), (b, a, c, d), (a, b, c), (a, b, c, d, d), (0.0,) * 4, (a, b, c, float("nan")), ()):
        assert not miniature.is_miniature(other)
    key, path = miniature.OUT_BIAS_KEY, tmp_path / "other.safetensors"
    for bias in (torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int8), None):
        save_file({"x": torch.zeros(4)} if bias is None else {key: bias}, path)
        assert not miniature.is_miniature_file(path)
    path.write_bytes(b"<html>")
    assert not miniature.is_miniature_file(path) and not miniature.is_miniature_file(tmp_path / "none.safetensors")


@pytest.mark.parametrize("metadata", [OURS, KOHYAS])
def test_the_check_says_that_a_lora_is_the_miniatures_and_a_conversion_keeps_it(metadata, tmp_path):
    path = _lora(tmp_path / "in.safetensors", metadata)
    assert "it was trained on Scribble LoRA's miniature" in table(check(path))
    convert.convert_file(path, tmp_path / "out.safetensors", to="diffusers")
    assert miniature.is_of_miniature(convert.read(tmp_path / "out.safetensors").metadata)
    assert "miniature" not in table(check(_lora(tmp_path / "other.safetensors", {"ss_sd_model_name": "v1-5.safetensors"})))


def test_a_lora_of_the_earlier_miniature_says_what_to_do(tmp_path):
    path = _lora(tmp_path / "old.safetensors", {"ss_base_model_version": "scribble_miniature"}, width=64)
    assert f"it {miniature.EARLIER_IS_GONE}" in map(str, check(path).notes)


def test_loras_of_the_miniature_merge_with_their_own_kind(tmp_path):
    a, b = _lora(tmp_path / "a.safetensors", OURS), _lora(tmp_path / "b.safetensors", KOHYAS)
    other, out = _lora(tmp_path / "c.safetensors", {}), tmp_path / "out.safetensors"
    merging.merge([(a, 1), (b, 1)], out)
    assert miniature.is_of_miniature(convert.read(out).metadata)
    with pytest.raises(convert.FileError, match="c.safetensors: is for sd_v1 and a.safetensors for Scribble LoRA's miniature"):
        merging.merge([(a, 1), (other, 1)], tmp_path / "no.safetensors")


def test_what_is_extracted_from_a_tuned_miniature_is_the_miniatures(tmp_path):
    torch.manual_seed(0)
    weight = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    for bias, expected in ((torch.tensor(miniature.OUT_BIAS), True), (torch.zeros(4), False)):
        base = {weight: torch.randn(320, 320), miniature.OUT_BIAS_KEY: bias}
        tuned = {**base, weight: base[weight] + torch.ones(320, 1) @ torch.randn(1, 320)}
        for name, tensors in (("base", base), ("tuned", tuned)):
            save_file(tensors, tmp_path / f"{name}.safetensors")
        out = tmp_path / f"{expected}.safetensors"
        extract(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", out, Limit(1))
        assert miniature.is_of_miniature(convert.read(out).metadata) is expected


def test_a_notice_is_given_both_ways_and_only_to_the_wrong_pair():
    notice = miniature.notice
    assert notice(of_miniature=True, on_miniature=True) == notice(of_miniature=False, on_miniature=False) == ""
    assert "another checkpoint is loaded" in notice(of_miniature=True, on_miniature=False)
    assert "which is the loaded checkpoint" in notice(of_miniature=False, on_miniature=True)
