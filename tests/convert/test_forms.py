"""Every form in, every form out; A -> B -> A is the identity on bytes and effective scale."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import convert
from convert import names
from convert.sd15 import modules


def _adapters(path):
    """Module -> (bytes of down, bytes of up, effective scale), read by convert."""
    lora = convert.read(path)
    return {n: (m.parts["down"].read(), m.parts["up"].read(), m.scale, m.rank) for n, m in lora.modules.items()}


def test_every_written_name_is_read_back():
    for module, form in itertools.product(modules().values(), names.FORMS):
        for part in names.parts_of(form, module.scope):
            key = names.parse(names.spell(form, module, part))
            assert key is not None
            assert (key.module, key.part, key.form) == (module, part, form)


def test_no_spelling_means_two_modules():
    seen = {}
    for row in names.SPELLINGS:
        for module in modules().values():
            name = row.name(module) if module.scope == row.scope else None
            if name is not None:
                assert seen.setdefault(row.prefix + name, module) is module


def test_every_form_becomes_the_same_kohya_file(maker, tmp_path):
    chosen = [m for m in maker.attention() if "layers.1." in m.name or "mid_block" in m.name]
    written = {}
    for form in maker.spellings:
        source = maker.write(tmp_path / "in.safetensors", form, chosen, metadata={"note": "kept"})
        report = convert.convert_file(source, tmp_path / "out.safetensors", overwrite=True)
        assert report.unet + report.text_encoder == len(chosen)
        written[form] = (tmp_path / "out.safetensors").read_bytes().replace(b'"format":"pt",', b"")
    reference = written.pop("kohya")
    assert all(data == reference for data in written.values())


@pytest.mark.parametrize(
    "form", ["kohya", "comfyui", "kohya with LDM names", "diffusers", "diffusers with lora_A", "peft", "unprefixed"]
)
def test_every_layer_of_the_network_is_mapped(form, maker, tmp_path):
    chosen = maker.linear_and_conv()
    source = maker.write(tmp_path / "in.safetensors", form, chosen, rank=1, dtype=torch.float16)
    report = convert.convert_file(source, tmp_path / "out.safetensors")
    assert (report.unet, report.text_encoder) == (282, 72)
    result, original = (
        load_file(tmp_path / "out.safetensors"),
        maker.tensors("kohya", chosen, rank=1, dtype=torch.float16),
    )
    assert all(torch.equal(result[key], tensor) for key, tensor in original.items())


def test_alpha_is_kept_per_module_as_a_float32_scalar(maker, tmp_path):
    tensors = maker.tensors("kohya", maker.attention("unet"))
    for number, module in enumerate(maker.attention("unet")):
        tensors[maker.spellings["kohya"](module, "alpha")] = torch.tensor(number + 0.5, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "in.safetensors")
    for step, form in (("in", "diffusers"), ("diffusers", "peft"), ("peft", "kohya")):
        source = tmp_path / (step if step == "peft" else f"{step}.safetensors")
        convert.convert_file(source, tmp_path / ("peft" if form == "peft" else f"{form}.safetensors"), to=form)
    result = load_file(tmp_path / "kohya.safetensors")
    for number, module in enumerate(maker.attention("unet")):
        alpha = result[maker.spellings["kohya"](module, "alpha")]
        assert alpha.dtype == torch.float32
        assert alpha.shape == ()
        assert alpha == torch.tensor(number + 0.5, dtype=torch.bfloat16).float()


def test_rslora_becomes_alpha_times_root_of_rank(maker, tmp_path):
    save_file(maker.tensors("peft", maker.attention("unet"), rank=8), tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 4, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lora = convert.read(tmp_path)
    assert lora.alpha_from == "adapter_config.json"
    assert lora.alpha / lora.rank == pytest.approx(4 / math.sqrt(8), rel=1e-7)
    assert (
        convert.read(tmp_path / "adapter_model.safetensors").alpha == lora.alpha
    )  # the configuration beside it counts


def test_alpha_and_rank_patterns(maker, tmp_path):
    chosen = maker.attention("unet")
    tensors = maker.tensors("diffusers", chosen, rank=4)
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"mid_block.*attn1.to_q": 8, "attn2.to_v": 16}}
    save_file(tensors, tmp_path / "in.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    lora = convert.read(tmp_path / "in.safetensors")
    for name, module in lora.modules.items():
        expected = (
            8
            if name.startswith("mid_block") and name.endswith("attn1.to_q")
            else 16
            if name.endswith("attn2.to_v")
            else 2
        )
        assert module.alpha == expected


def test_alpha_argument_fills_only_what_the_file_lacks(maker, tmp_path):
    bare = maker.write(tmp_path / "bare.safetensors", "diffusers", maker.attention("unet"))
    assert convert.read(bare).alpha == 4
    (note,) = convert.read(bare).notes
    assert "no alpha" in note.text and "--" not in note.text and "--alpha" in str(note)  # a host shows the text alone
    assert convert.read(bare, alpha=8).alpha == 8
    full = maker.write(tmp_path / "full.safetensors", "kohya", maker.attention("unet"), alpha=2)
    assert convert.read(full, alpha=8).alpha == 2
    assert any("not needed" in str(note) for note in convert.read(full, alpha=8).notes)


def test_folding_alpha_keeps_the_change(maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:6], alpha=1)
    convert.convert_file(source, tmp_path / "out.safetensors", to="diffusers", fold_alpha=True)
    before, after = load_file(source), load_file(tmp_path / "out.safetensors")
    assert convert.read(tmp_path / "out.safetensors").alpha == 4
    for module in maker.attention("unet")[:6]:
        keys = [maker.spellings[form](module, part) for form in ("kohya", "diffusers") for part in ("up", "down")]
        assert torch.equal(before[keys[0]] * 0.25 @ before[keys[1]], after[keys[2]] @ after[keys[3]])


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_dtype_casts_as_torch_does(name, dtype, maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:4], alpha=4)
    report = convert.convert_file(source, tmp_path / "out.safetensors", dtype=name)
    before, after = load_file(source), load_file(tmp_path / "out.safetensors")
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor if key.endswith("alpha") else tensor.to(dtype))
    assert any("cast" in str(note) for note in report.notes) == (name != "fp32")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_without_a_cast_any_dtype_is_copied(dtype, maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "diffusers", maker.attention("unet")[:2], dtype=dtype)
    convert.convert_file(source, tmp_path / "out.safetensors")
    assert {tensor.dtype for key, tensor in load_file(tmp_path / "out.safetensors").items() if "alpha" not in key} == {
        dtype
    }


def test_equal_input_gives_an_equal_file_whatever_the_order(maker, tmp_path):
    tensors = maker.tensors("diffusers", maker.attention("unet")[:9])
    written = []
    for order in (list(tensors), list(reversed(tensors))):  # and safetensors shuffles its metadata at each writing
        save_file(
            {key: tensors[key] for key in order}, tmp_path / "in.safetensors", {f"k{n}": str(n) for n in range(9)}
        )
        convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", overwrite=True)
        written.append((tmp_path / "out.safetensors").read_bytes())
    assert written[0] == written[1]


def test_flat_convolutions_of_comfyui_get_their_kernel_back(maker, tmp_path):
    module = modules()["down_blocks.1.resnets.0.conv1"]
    spell, made = maker.spellings["comfyui"], maker.factors(module.shape, 4, 0)
    save_file({spell(module, part): tensor.flatten(1) for part, tensor in made.items()}, tmp_path / "in.safetensors")
    convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    result = load_file(tmp_path / "out.safetensors")
    for part, tensor in made.items():
        assert torch.equal(result[maker.spellings["kohya"](module, part)], tensor)


def test_differences_are_carried_within_kohya_and_refused_elsewhere_by_name(maker, tmp_path):
    conv, norm = modules()["conv_in"], modules()["conv_norm_out"]
    spell = maker.spellings["comfyui"]
    tensors = {
        **maker.tensors("comfyui", maker.attention("unet")[:1], alpha=1),
        spell(conv, "diff_b"): torch.randn(320),
        spell(norm, "diff"): torch.randn(320),
        spell(norm, "diff_b"): torch.randn(320),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    result = load_file(tmp_path / "out.safetensors")
    assert torch.equal(result["lora_unet_conv_norm_out.diff"], tensors[spell(norm, "diff")])
    assert torch.equal(result["lora_unet_conv_in.diff_b"], tensors[spell(conv, "diff_b")])
    for form in ("diffusers", "peft"):
        with pytest.raises(convert.JobError, match=r"difference \(\.diff\): conv_norm_out"):
            convert.convert_file(tmp_path / "in.safetensors", tmp_path / "other", to=form)
        assert not (tmp_path / "other").exists()


def test_both_networks_become_two_peft_adapters(maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention(), alpha=3)
    convert.convert_file(source, tmp_path / "adapter", to="peft")
    assert sorted(p.relative_to(tmp_path / "adapter").as_posix() for p in (tmp_path / "adapter").rglob("*.*")) == [
        "text_encoder/adapter_config.json", "text_encoder/adapter_model.safetensors",
        "unet/adapter_config.json", "unet/adapter_model.safetensors",
    ]  # fmt: skip
    assert _adapters(tmp_path / "adapter") == _adapters(source)


LAYERS = [module.name for module in modules().values() if not module.is_norm]


@st.composite
def loras(draw):
    """Any subset of layers, each with its own rank, alpha and shape, of one dtype."""
    chosen = draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=6, unique=True))
    ranks = draw(st.lists(st.integers(1, 5), min_size=len(chosen), max_size=len(chosen)))
    alphas = draw(st.lists(st.floats(0, 1e6, width=32), min_size=len(chosen), max_size=len(chosen)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    return list(zip(chosen, ranks, alphas)), dtype


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lora=loras(), there=st.sampled_from(names.FORMS), back=st.sampled_from(names.FORMS))
def test_there_and_back_is_the_identity(lora, there, back, maker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    rows, dtype = lora
    tensors = {}
    for seed, (name, rank, alpha) in enumerate(rows):
        module = modules()[name]
        for part, tensor in maker.factors(module.shape, rank, seed, dtype).items():
            tensors[maker.spellings["kohya"](module, part)] = tensor
        tensors[maker.spellings["kohya"](module, "alpha")] = torch.tensor(alpha)
    save_file(tensors, folder / "in.safetensors")
    convert.convert_file(folder / "in.safetensors", folder / "a", to=back)
    convert.convert_file(folder / "a", folder / "b", to=there)
    convert.convert_file(folder / "b", folder / "a2", to=back)
    assert (
        _adapters(folder / "a")
        == _adapters(folder / "b")
        == _adapters(folder / "a2")
        == _adapters(folder / "in.safetensors")
    )
    first, second = (convert.read(folder / name).metadata["sshs_model_hash"] for name in ("a", "a2"))
    assert first == second
