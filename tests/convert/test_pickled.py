"""PyTorch's files: read as torch reads them, without running any of their code."""

import os
import pickle
import random
import zipfile

import pytest
import torch
from safetensors.torch import load_file

import convert
from convert import cli
from convert.container import open_container

ROUNDS = int(os.environ.get("CONVERT_FUZZ_ROUNDS", "400"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_lora_is_converted_as_from_safetensors(zipped, dtype, maker, tmp_path):
    tensors = maker.tensors("attention processors, no prefix", maker.attention("unet")[:4], dtype=dtype)
    tensors = {key: torch.nn.Parameter(tensor) if "mid" in key else tensor for key, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "in.bin", _use_new_zipfile_serialization=zipped)
    assert cli.main([str(tmp_path / "in.bin"), str(tmp_path / "out.safetensors")]) == 0
    maker.write(tmp_path / "in.safetensors", "attention processors, no prefix", maker.attention("unet")[:4], dtype=dtype)
    convert.convert_file(tmp_path / "in.safetensors", tmp_path / "expected.safetensors")
    ours, expected = load_file(tmp_path / "out.safetensors"), load_file(tmp_path / "expected.safetensors")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())
    assert convert.check(tmp_path / "in.bin", pickles=True).sound


@pytest.mark.parametrize("zipped", [True, False])
def test_views_of_a_storage_and_a_state_dict_beside_numbers(zipped, tmp_path):
    whole = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    content = {"state_dict": {"a": whole[1:3], "b": whole[0], "e": torch.zeros(0, 3)}, "epoch": 3, "note": "x"}
    torch.save(content, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    container = open_container(tmp_path / "in.pt", pickles=True)
    for name, tensor in content["state_dict"].items():
        assert container.tensors[name].shape == tuple(tensor.shape)
        assert container.tensors[name].read() == tensor.numpy().tobytes()
    torch.save({"t": whole.T}, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(convert.NotALora, match="row by row"):
        open_container(tmp_path / "in.pt", pickles=True)


def test_a_folder_with_a_pickled_adapter(maker, tmp_path):
    torch.save(maker.tensors("peft", maker.attention("unet")[:2]), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    assert convert.read(tmp_path, pickles=True).alpha == 8


def test_pickles_are_read_on_request_only(maker, tmp_path):
    torch.save(maker.tensors("kohya", maker.attention("unet")[:1]), tmp_path / "in.pt")
    for use in (convert.read, convert.convert_bytes, lambda path: convert.convert_file(path, tmp_path / "out.safetensors")):
        with pytest.raises(convert.NotSafetensors):
            use(tmp_path / "in.pt")
    assert not convert.check(tmp_path / "in.pt").sound


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


CALLS = {
    "os.system": (os.system, ("touch {}",)),
    "eval": (eval, ("open({!r}, 'w')",)),
    "getattr": (getattr, (os, "system")),
    "a class": (pickle.Pickler, ()),
    "torch's own": (torch.load, ("{}",)),
    "a dict subclass": (__import__("collections").defaultdict, (list,)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_nothing_in_a_pickle_is_run(call, zipped, tmp_path):
    trace = tmp_path / "trace"
    function, arguments = CALLS[call]
    arguments = tuple(text.format(str(trace)) if isinstance(text, str) else text for text in arguments)
    content = {"a": torch.zeros(2), "b": Evil(function, arguments)}
    if call == "getattr":
        content["b"] = Evil(function, (Evil(__import__, ("os",)), "system"))
    torch.save(content, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(convert.FileError) as caught:
        open_container(tmp_path / "in.pt", pickles=True)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_bombs_are_refused_quickly(tmp_path):
    bombs = {
        "a memo index of 2^31": b"\x80\x02N\x72\xff\xff\xff\x7f.",
        "bytes of 2^62": b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little"),
        "a long of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f",
        "a frame of 2^60": b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little"),
        "deep": b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
    }  # fmt: skip
    for data in bombs.values():
        (tmp_path / "in.pt").write_bytes(data)
        with pytest.raises(convert.FileError):
            open_container(tmp_path / "in.pt", pickles=True)
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            archive.writestr("x/data.pkl", data)
        with pytest.raises(convert.FileError):
            open_container(tmp_path / "in.zip", pickles=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_fuzz(zipped, maker, tmp_path):
    draw = random.Random(int(zipped))
    torch.save(maker.tensors("kohya", maker.attention("unet")[:1], alpha=4), tmp_path / "in.pt",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    sound = (tmp_path / "in.pt").read_bytes()
    worked = 0
    for _ in range(ROUNDS):
        data = bytearray(sound)
        for _ in range(draw.choice((1, 1, 3))):
            place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(700, len(data)))
            if draw.random() < 0.7:
                data[place] = draw.randrange(256)
            else:
                del data[place : place + draw.choice((1, 9))]
        (tmp_path / "in.pt").write_bytes(data)
        try:
            convert.convert_file(tmp_path / "in.pt", tmp_path / "out.safetensors", pickles=True, overwrite=True)
            worked += 1
        except convert.JobError as error:
            assert "\n" not in str(error)
    assert 0 < worked < ROUNDS
