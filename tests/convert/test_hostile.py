"""Broken and hostile files: one line, `JobError`, nothing written. Fuzzed at three levels: bytes, header, adapter."""

import json
import os
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convert
from convert.check import check
from convert.container import open_container
from convert.sd15 import modules

ROUNDS = int(os.environ.get("CONVERT_FUZZ_ROUNDS", "400"))
"""Mutations per fuzz test; raise it for a long run."""

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
FACTORS = [
    (f"{KEY}.alpha", "F32", [], 4),
    (f"{KEY}.lora_down.weight", "F32", [1, 320], 1280),
    (f"{KEY}.lora_up.weight", "F32", [320, 1], 1280),
]


def container(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def sound_header():
    header, position = {"__metadata__": {"ss_output_name": "x"}}, 0
    for name, dtype, shape, size in FACTORS:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return header, struct.pack("<f", 1.0) + bytes(2560)


def changed(**entries):
    header, data = sound_header()
    header.update(entries)
    return container(header, data)


def up(dtype, shape, offsets):
    """The sound file with another entry for `lora_up`."""
    return changed(**{UP: {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


def alone(name, shape, size):
    """A file of one tensor."""
    return container({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, bytes(size))


HEADER, DATA = sound_header()
SOUND = container(HEADER, DATA)
UP = f"{KEY}.lora_up.weight"

HOSTILE = {
    "empty": (b"", "is empty"),
    "a few bytes": (b"abc", "too short"),
    "web page": (b"<!DOCTYPE html><html>not found</html>", "web page"),
    "web page after blank lines": (b"\n\n  <html></html>" * 9, "web page"),
    "zip pickle": (b"PK\x03\x04" + bytes(99), "python -m convert"),
    "old pickle": (b"\x80\x02" + bytes(99), "pickle"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
    "noise": (bytes(range(200, 256)) * 9, "not a safetensors file"),
    "truncated data": (SOUND[:-1], "cut off"),
    "truncated header": (SOUND[:100], "cut off"),
    "header length lies": (struct.pack("<Q", 2**63) + SOUND[8:], "header of"),
    "header length one too short": (struct.pack("<Q", len(SOUND) - 2569) + SOUND[8:], "broken"),
    "no object": (container(b'{"a":1}')[:8] + b"[1,2,3]", "not a safetensors file"),
    "not UTF-8": (container(b'{"\xff":1}'), "broken"),
    "half a surrogate pair": (container(b'{"__metadata__":{"a":"\\ud800"}}'), "surrogate"),
    "absurdly nested": (container(b'{"a":' + b"[" * 100_000), "broken"),
    "absurd number": (container(b'{"a":' + b"9" * 100_000 + b"}"), "absurdly large"),
    "not a number": (container(b'{"a":NaN}'), "needs dtype"),
    "key twice": (container(b'{"a":{},"a":{}}'), "twice"),
    "metadata no strings": (changed(__metadata__={"a": 1}), "strings to strings"),
    "metadata no object": (changed(__metadata__=[1]), "strings to strings"),
    "unknown dtype": (up("F99", [320, 1], [1284, 2564]), "unknown dtype"),
    "dtype no string": (up(["F32"], [320, 1], [1284, 2564]), "dtype"),
    "negative shape": (up("F32", [-320, -1], [1284, 2564]), "shape"),
    "boolean shape": (up("F32", [320, True], [1284, 2564]), "shape"),
    "many dimensions": (up("F32", [1] * 99, [1284, 1288]), "shape"),
    "three offsets": (up("F32", [320, 1], [1284, 2564, 0]), "data_offsets"),
    "offset after the end": (up("F32", [320, 1], [2284, 3564]), "cut off"),
    "reversed offsets": (up("F32", [320, 1], [2564, 1284]), "does not take"),
    "overlap": (up("F32", [320, 1], [1280, 2560]), "overlaps"),
    "too few bytes": (up("F16", [320, 1], [1284, 2564]), "does not take"),
    "hidden bytes": (SOUND + b"hidden", "unused bytes"),
    "no tensors": (container({}), "no tensors"),
    "wrong shape": (
        up("F32", [160, 2], [1284, 2564]), "up has shape"
    ),
    "up without down": (alone(UP, [320, 1], 1280), "no down"),
    "alpha of nothing": (alone(f"{KEY}.alpha", [], 4), "no factors"),
    "alpha is NaN": (container(HEADER, struct.pack("<f", float("nan")) + DATA[4:]), "alpha"),
    "unknown key with a newline": (alone("a\nb", [], 4), "not part of"),
    "very long key": (alone("a" * 100_000, [], 4), "not part of"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name, tmp_path):
    data, said = HOSTILE[name]
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(data)
    with pytest.raises(convert.JobError, match=said) as caught:
        convert.convert_file(source, target)
    message = str(caught.value)
    assert str(source) in message
    assert "\n" not in message
    assert len(message) < 1000
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_the_sound_file_they_come_from_is_sound(tmp_path):
    (tmp_path / "in.safetensors").write_bytes(SOUND)
    assert convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors").unet == 1


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    source = tmp_path / "in.safetensors"
    with open(source, "wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(300_000_000)  # sparse
    with pytest.raises(convert.JobError, match="claims a header of 200000000"):
        convert.read(source)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ('{"peft_type": "LOHA", "lora_alpha": 1}', "LOHA"),
        ('{"r": 4}', "lora_alpha"),
        ('{"lora_alpha": "4"}', "lora_alpha"),
        ('{"lora_alpha": Infinity}', "lora_alpha"),
        ('{"lora_alpha": 1, "r": 2.5}', "r must be"),
        ('{"lora_alpha": 1, "r": 7}', "rank 7"),
        ('{"lora_alpha": 1, "alpha_pattern": {"(a+)+b": 1}}', "not a simple regular"),
        ('{"lora_alpha": 1, "alpha_pattern": {"[": 1}}', "not a simple regular"),
        ('{"lora_alpha": 1, "alpha_pattern": {".*.*.*.*to_q": 1}}', "not a simple regular"),
        (json.dumps({"lora_alpha": 1, "alpha_pattern": {f"a{n}.*": 1 for n in range(99)}}), "too complex"),
        (json.dumps({"lora_alpha": 1, "alpha_pattern": {f"a{n}": 1 for n in range(9999)}}), "at most 2000"),
        ('{"lora_alpha": 1, "alpha_pattern": {"a": "x"}}', "to numbers"),
        ('{"lora_alpha": 1e39}', "does not fit"),
        ('{"lora_alpha": 1, "fan_in_fan_out": true}', "fan_in_fan_out"),
    ],
)
def test_hostile_adapter_configurations(config, said, maker, tmp_path):
    maker.write(tmp_path / "adapter_model.safetensors", "peft", maker.attention("unet")[:1])
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(convert.JobError, match=said) as caught:
        convert.read(tmp_path)
    assert "\n" not in str(caught.value)


def _survives(path, target):
    """A conversion either works, and then its output is sound, or is refused in one line and leaves nothing."""
    try:
        convert.convert_file(path, target, overwrite=True)
    except convert.JobError as error:
        assert "\n" not in str(error)
        assert not target.exists()
        return False
    open_container(target)
    assert check(target).problem is None or check(target).not_finite
    target.unlink()
    return True


def test_fuzz_bytes(tmp_path):
    draw = random.Random(0)
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    worked = 0
    for _ in range(ROUNDS):
        data = bytearray(SOUND)
        header = len(SOUND) - len(DATA)
        for _ in range(draw.choice((1, 1, 2, 5))):
            place = draw.randrange(max(header if draw.random() < 0.8 else len(data), 1))
            action = draw.random()
            if action < 0.5:
                data[place : place + 1] = bytes([draw.choice((draw.randrange(256), *b'0123456789{}[]",:\\'))])
            elif action < 0.7:
                del data[place : place + draw.choice((1, 2, 30))]
            elif action < 0.9:
                data[place:place] = data[place : place + draw.choice((1, 3, 40))]
            else:
                data = data[:place] or bytearray(1)
            header = min(header, len(data))
        if draw.random() < 0.5 and len(data) > 8:  # else most changes of length stop at the header's length
            length = data.find(b"}}", 8) + 2
            data[:8] = struct.pack("<Q", max(length, 2) - 8) if length > 8 else data[:8]
        source.write_bytes(data)
        worked += _survives(source, target)
    assert 0 < worked < ROUNDS  # some changes hit a value of a tensor or of the metadata


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
SIZES = st.sampled_from([0, 1, 4, 320, 768, 1280, 2560, -1, 2**40])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "C64", "X"]) | JSON,
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | JSON,
    }
)
NAMES = (
    st.sampled_from([name for name, *_ in FACTORS] + [f"{KEY}.dora_scale", f"{KEY}.diff", "__metadata__", "x"])
    | st.text()
)


@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    header=st.dictionaries(NAMES, ENTRIES | JSON, max_size=4), data=st.sampled_from([b"", bytes(4), bytes(1280), DATA])
)
def test_fuzz_headers(header, data, tmp_path):
    merged = {**HEADER, **header} if len(data) == len(DATA) else header
    (tmp_path / "in.safetensors").write_bytes(container(json.dumps(merged).encode("utf-8", "replace"), data))
    _survives(tmp_path / "in.safetensors", tmp_path / "out.safetensors")


PARTS = [
    "alpha",
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "dora_scale",
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 320, 640]), max_size=5)


@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.dictionaries(
        st.tuples(st.sampled_from([*modules()][:30]), st.sampled_from(PARTS)),
        st.tuples(st.sampled_from(["F32", "BF16", "I8", "C64"]), SHAPES),
        min_size=1, max_size=5,
    ),
    form=st.sampled_from(["kohya", "diffusers", "peft"]),
    fold=st.booleans(),
    metadata=st.sampled_from([{}, {"ss_base_model_version": "elsewhere"}]),
)  # fmt: skip
def test_fuzz_adapters(rows, form, fold, metadata, tmp_path):
    header, position = {"__metadata__": metadata}, 0
    for (module, part), (dtype, shape) in rows.items():
        size = {"F32": 4, "BF16": 2, "I8": 1, "C64": 8}[dtype]
        for length in shape:
            size *= length
        if position + size > 4_000_000:
            continue
        name = f"lora_unet_{module.replace('.', '_')}.{part}"
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    (tmp_path / "in.safetensors").write_bytes(container(header, bytes(position)))
    target = tmp_path / "out"
    try:
        convert.convert_file(tmp_path / "in.safetensors", target, to=form, fold_alpha=fold, overwrite=True)
    except convert.JobError as error:
        assert "\n" not in str(error)
    else:
        assert convert.read(target).modules.keys() == convert.read(tmp_path / "in.safetensors").modules.keys()
