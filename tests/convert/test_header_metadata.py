"""Metadata: hashes as kohya computes them, the keys that hosts read, nothing stale, nothing lost."""

import hashlib
import io
import json

import pytest
import safetensors.torch
import torch

import convert
from convert.metadata import _number


@pytest.fixture
def source(maker, tmp_path):
    stale = {
        "sshs_model_hash": "0" * 64,
        "sshs_legacy_hash": "1" * 8,
        "ss_network_dim": "128",
        "ss_network_alpha": "64",
    }
    own = {"ss_tag_frequency": '{"x": 1}', "ss_seed": "42", "other": "kept", "ünï": "cødé\n\"'"}
    return maker.write(tmp_path / "in.safetensors", "diffusers", maker.attention("unet"), metadata={**stale, **own})


def _read(path):
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def _kohya_hashes(path):
    """Both hashes from safetensors' own serialisation, as sd-scripts saves a network."""
    metadata = {key: value for key, value in _read(path).items() if key.startswith("ss_")}
    data = io.BytesIO(safetensors.torch.save(safetensors.torch.load_file(path), metadata))
    data.seek(8 + int.from_bytes(data.read(8), "little"))
    model = hashlib.sha256(data.read()).hexdigest()
    data.seek(0x100000)
    return model, hashlib.sha256(data.read(0x10000)).hexdigest()[:8]


@pytest.mark.parametrize("dtype", [None, "fp16", "bf16"])
def test_hashes_are_kohyas(dtype, source, tmp_path):
    convert.convert_file(source, tmp_path / "out.safetensors", alpha=2, dtype=dtype)
    metadata = _read(tmp_path / "out.safetensors")
    model, legacy = _kohya_hashes(tmp_path / "out.safetensors")
    assert metadata["sshs_model_hash"] == model
    assert metadata["sshs_legacy_hash"] == legacy
    assert metadata["modelspec.hash_sha256"] == f"0x{model}"


@pytest.mark.parametrize("rank", [1, 8, 16, 64])
def test_the_legacy_hash_of_any_size(rank, maker, tmp_path):
    """Its window lies past the end, across it, or across several tensors."""
    maker.write(tmp_path / "in.safetensors", "diffusers", maker.attention("unet")[:20], rank=rank)
    convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert _read(tmp_path / "out.safetensors")["sshs_legacy_hash"] == _kohya_hashes(tmp_path / "out.safetensors")[1]


def test_keys_that_hosts_read(source, tmp_path):
    given = {"modelspec.trigger_phrase": "a scribble of", "ss_tag_frequency": {"doodles": {"a scribble of cat": 20}}}
    convert.convert_file(source, tmp_path / "cat.safetensors", alpha=8, metadata=given)
    metadata = _read(tmp_path / "cat.safetensors")
    expected = {
        "ss_output_name": "cat", "ss_base_model_version": "sd_v1", "ss_v2": "False",
        "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "8", "ss_network_args": "{}",
        "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "cat", "modelspec.resolution": "512x512", "modelspec.trigger_phrase": "a scribble of",
    }  # fmt: skip
    assert expected.items() <= metadata.items()
    assert "a scribble of" in metadata["modelspec.usage_hint"]
    assert json.loads(metadata["ss_tag_frequency"]) == given["ss_tag_frequency"]
    assert (metadata["other"], metadata["ss_seed"], metadata["ünï"]) == ("kept", "42", "cødé\n\"'")


def test_keys_are_sorted_and_the_data_is_aligned(source, tmp_path):
    convert.convert_file(source, tmp_path / "out.safetensors")
    data = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    assert [name for name in header if name != "__metadata__"] == sorted(
        name for name in header if name != "__metadata__"
    )


def test_diffusers_own_alpha_does_not_linger_in_other_forms(source, tmp_path):
    """A stale one would contradict the alphas of the new file."""
    convert.convert_file(source, tmp_path / "d.safetensors", to="diffusers", alpha=8)
    assert "lora_adapter_metadata" in _read(tmp_path / "d.safetensors")
    convert.convert_file(tmp_path / "d.safetensors", tmp_path / "k.safetensors")
    assert "lora_adapter_metadata" not in _read(tmp_path / "k.safetensors")
    assert convert.read(tmp_path / "k.safetensors").alpha == 8


def test_another_base_says_so_and_is_never_taken_for_sd1(maker, tmp_path):
    chosen = maker.attention("unet")[:4]
    shapes = {m.name: (16, 16) for m in chosen}
    source = maker.write(tmp_path / "in.safetensors", "diffusers", chosen, shapes=shapes)
    with pytest.raises(convert.JobError, match="ss_base_model_version"):
        convert.convert_file(source, tmp_path / "out.safetensors")
    given = {"ss_base_model_version": "like_sd_v1"}
    for form in ("kohya", "diffusers", "peft"):
        report = convert.convert_file(source, tmp_path / form, to=form, metadata=given)
        assert report.base == "like_sd_v1"
        assert any("like_sd_v1" in str(note) for note in report.notes)
        lora = convert.read(tmp_path / form)  # from now on the file's own metadata says it
        assert lora.base == "like_sd_v1"
        assert lora.metadata["modelspec.architecture"] == "like-sd-v1/lora"
        assert lora.modules[chosen[0].name].shape == (16, 16)


def test_set_metadata_changes_the_header_alone(source, tmp_path):
    path = tmp_path / "out.safetensors"
    convert.convert_file(source, path)
    before, tensors = _read(path), safetensors.torch.load_file(path)
    written = convert.set_metadata(path, {"modelspec.title": "Doodles", "other": None, "n": 3, "ss_datasets": []})
    after = _read(path)
    assert after == written
    assert after["modelspec.title"] == "Doodles"
    assert (after["n"], after["ss_datasets"]) == ("3", "[]")
    assert "other" not in after
    assert after["sshs_model_hash"] == before["sshs_model_hash"]
    assert after["sshs_legacy_hash"] == _kohya_hashes(path)[1]
    again = safetensors.torch.load_file(path)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"ss_tag_frequency": "{not json"}, "JSON"),
        ({"a": object()}, "text, a number"),
        ({"": "x"}, "must be text"),
        ({"a": "\ud800"}, "UTF-8"),
    ],
)
def test_metadata_that_no_header_can_hold(mapping, said, source, tmp_path):
    before = source.read_bytes()
    with pytest.raises(convert.UsageError, match=said):
        convert.convert_file(source, tmp_path / "out.safetensors", metadata=mapping)
    with pytest.raises(convert.UsageError, match=said):
        convert.set_metadata(source, mapping)
    assert source.read_bytes() == before


def test_a_long_header_is_read_and_written_with_a_note_on_its_longest_key(source, tmp_path):
    """ComfyUI loads such a file but does not show its metadata; other programs' long headers are not refused."""
    big = {"modelspec.thumbnail": "x" * (2 << 20)}
    report = convert.convert_file(source, tmp_path / "long.safetensors", metadata=big)
    assert any("--drop modelspec.thumbnail" in str(note) for note in report.notes)
    assert convert.read(tmp_path / "long.safetensors").metadata.items() >= big.items()
    assert convert.convert_bytes(tmp_path / "long.safetensors") == (tmp_path / "long.safetensors").read_bytes()
    assert convert.set_metadata(tmp_path / "long.safetensors", {"a": "b"}).items() >= big.items()
    assert convert.check(tmp_path / "long.safetensors").sound


def test_a_header_beyond_what_is_read_is_refused_by_its_longest_key(source, tmp_path):
    big = {"modelspec.thumbnail": "x" * (32 << 20)}
    with pytest.raises(convert.JobError, match="--drop modelspec.thumbnail"):
        convert.convert_file(source, tmp_path / "out.safetensors", metadata=big)
    assert not (tmp_path / "out.safetensors").exists()
    convert.convert_file(source, tmp_path / "out.safetensors", metadata={"modelspec.thumbnail": None})


def test_convert_bytes_is_the_file(source, tmp_path):
    convert.convert_file(source, tmp_path / "in.out.safetensors", alpha=3)
    data = convert.convert_bytes(source, alpha=3, metadata={"ss_output_name": "in.out"})
    assert data == (tmp_path / "in.out.safetensors").read_bytes()
    with pytest.raises(convert.UsageError, match="folder"):
        convert.convert_bytes(source, to="peft")


def test_returned_mappings_are_not_shared(source):
    """Two reads return two objects: a caller cannot change another's."""
    assert convert.read(source).metadata is not convert.read(source).metadata


@pytest.mark.parametrize(("value", "text"), [(4.0, "4"), (0.1, "0.1"), (2.0**52, "4503599627370496"), (1e25, "1e+25")])
def test_numbers_are_written_short_and_exactly(value, text):
    assert _number(value) == text
