"""Errors carry fields: a host never has to parse a sentence."""

import errno
import pickle

import pytest
import torch
from safetensors.torch import save_file

import convert
from convert.commands import guarded

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K2 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def _pair(name, width=320, rank=4):
    return {f"{name}.lora_down.weight": torch.zeros(rank, width), f"{name}.lora_up.weight": torch.zeros(320, rank)}


CASES = {
    "another base, by its shapes": (_pair(K2, 2048), None, convert.WrongBase, {"base": "SDXL"}),
    "another base, by a name": (_pair("lora_te2_text_model_x"), None, convert.WrongBase, {"base": "SDXL"}),
    "another base, by its metadata": (_pair(Q), {"ss_v2": "True"}, convert.WrongBase, {"base": "SD2"}),
    "another network": (
        {f"{Q}.hada_w1_a": torch.zeros(1)}, None, convert.NotALora, {"kind": "a LoHa (LyCORIS)", "hosts_read": True}
    ),
    "no adapter": ({"emb_params": torch.zeros(1)}, None, convert.NotALora, {"hosts_read": False}),
    "unknown names": ({"b\n": torch.zeros(1), **_pair(Q)}, None, convert.UnknownKeys, {"keys": ["b\n"]}),
    "a wrong width": (_pair(Q, 321), None, convert.DoesNotFit, {"module": TO_Q}),
    "half a pair": (
        {f"{Q}.lora_up.weight": torch.zeros(320, 4)}, None, convert.DoesNotFit,
        {"module": TO_Q, "problem": f"{TO_Q}: has up but no down"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_errors_of_unreadable_files_have_the_reason_in_fields(case, tmp_path):
    tensors, metadata, kind, fields = CASES[case]
    path = tmp_path / "in.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(convert.FileError) as caught:
        convert.read(path)
    error = caught.value
    assert type(error) is kind
    assert {name: getattr(error, name) for name in fields} == fields
    assert error.path == path
    assert str(error) == f"{path}: {error.problem}" + (f"; {error.advice}" if error.advice else "")
    assert "\n" not in str(error)
    assert str(convert.check(path).error) == str(error)
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (kind, str(error), vars(error))


def test_what_a_form_cannot_hold_is_named_in_fields(tmp_path):
    tensors = {**_pair(Q), f"{Q}.lora_magnitude_vector": torch.zeros(320), f"{K2}.diff": torch.zeros(320, 768)}
    save_file(tensors, tmp_path / "in.safetensors")
    lora = convert.read(tmp_path / "in.safetensors")
    lacks = {form: convert.what_is_lacking(lora, form) for form in ("kohya", "diffusers", "peft")}
    assert {form: (error.form, error.part, len(error.modules)) for form, error in lacks.items()} == {
        "kohya": ("kohya", "magnitude", 1), "diffusers": ("diffusers", "diff", 1), "peft": ("peft", "diff", 1),
    }  # fmt: skip
    with pytest.raises(convert.FormLacks) as caught:
        convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert str(caught.value) == str(lacks["kohya"])


def test_a_pickle_is_told_from_other_things(tmp_path):
    for data, is_pickle in ((b"PK\x03\x04" + bytes(99), True), (b"<html></html>", False), (b"", False)):
        (tmp_path / "in.safetensors").write_bytes(data)
        with pytest.raises(convert.NotSafetensors) as caught:
            convert.read(tmp_path / "in.safetensors")
        assert caught.value.is_pickle is is_pickle
    (tmp_path / "in.safetensors").write_bytes(b"\x10" + bytes(7) + b"{")
    with pytest.raises(convert.Damaged):
        convert.read(tmp_path / "in.safetensors")


def test_an_error_of_the_system_without_a_file_is_one_line(capsys: pytest.CaptureFixture) -> None:
    def run() -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert guarded("convert", run) == 1
    assert capsys.readouterr().err == "convert: a file: No space left on device\n"
