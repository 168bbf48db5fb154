"""Merging into a checkpoint, against arithmetic in torch and against diffusers' own fusing."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import convert
from convert.bake import bake, main
from convert.sd15 import modules

CHOSEN = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.1.conv2",
    "up_blocks.3.attentions.2.proj_in", "text_model.encoder.layers.4.mlp.fc1",
]  # fmt: skip


def _checkpoint(path, dtype):
    """The chosen layers of an LDM checkpoint, and others that no LoRA changes."""
    torch.manual_seed(0)
    tensors = {"first_stage_model.conv.weight": torch.randn(3, 3), "betas": torch.arange(9, dtype=torch.float64)}
    for name in CHOSEN:
        module = modules()[name]
        prefix = "model.diffusion_model." if module.scope == "unet" else "cond_stage_model.transformer."
        tensors[f"{prefix}{module.ldm}.weight"] = torch.randn(module.shape).to(dtype)
        tensors[f"{prefix}{module.ldm}.bias"] = torch.randn(module.shape[0]).to(dtype)
    save_file(tensors, path, {"kept": "yes"})
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 0.8, -1.5])
def test_ldm_checkpoint(dtype, scale, maker, tmp_path):
    base = _checkpoint(tmp_path / "base.safetensors", dtype)
    chosen = [modules()[name] for name in CHOSEN]
    lora = maker.write(tmp_path / "lora.safetensors", "diffusers", chosen)
    report = bake(lora, base, tmp_path / "out.safetensors", scale=scale, alpha=2)
    before, after, factors = load_file(base), load_file(tmp_path / "out.safetensors"), load_file(lora)
    assert (report.unet + report.text_encoder, report.tensors) == (4, len(before))
    for module in chosen:
        key = next(k for k in before if k.endswith(f"{module.ldm}.weight"))
        down, up = (factors[maker.spellings["diffusers"](module, part)] for part in ("down", "up"))
        change = (up.flatten(1) @ down.flatten(1)).reshape(module.shape) * (2 / 4)
        expected = before.pop(key).float() + scale * change
        torch.testing.assert_close(
            after.pop(key), expected.to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5
        )
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_scale_zero_is_the_base_byte_for_byte(maker, tmp_path):
    base = _checkpoint(tmp_path / "base.safetensors", torch.bfloat16)
    lora = maker.write(tmp_path / "lora.safetensors", "kohya", [modules()[name] for name in CHOSEN], alpha=1)
    bake(lora, base, tmp_path / "out.safetensors", scale=0)
    before, after = load_file(base), load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_a_diffusers_unet_as_its_own_fuse_lora(maker, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        sample_size=8,
    )
    save_file(unet.state_dict(), tmp_path / "unet.safetensors")
    chosen = maker.attention("unet")
    shapes = {m.name: tuple(unet.get_submodule(m.name).weight.shape) for m in chosen}
    lora = maker.write(
        tmp_path / "lora.safetensors",
        "kohya",
        chosen,
        shapes=shapes,
        alpha=2,
        metadata={"ss_base_model_version": "narrow"},
    )
    bake(lora, tmp_path / "unet.safetensors", tmp_path / "out.safetensors", scale=0.8)
    fused = copy.deepcopy(unet)
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(lora), unet_config=unet.config)
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=fused)
    fused.fuse_lora(lora_scale=0.8)
    fused.unload_lora()
    theirs = fused.state_dict()
    ours = load_file(tmp_path / "out.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-6)


def test_dora_per_row_and_per_column(maker, tmp_path):
    module = modules()[CHOSEN[1]]
    base = _checkpoint(tmp_path / "base.safetensors", torch.float32)
    key = f"model.diffusion_model.{module.ldm}.weight"
    weight = load_file(base)[key]
    tensors = maker.tensors("kohya", [module], alpha=4)
    down, up = (tensors[maker.spellings["kohya"](module, part)] for part in ("down", "up"))
    full = weight + (up.flatten(1) @ down.flatten(1)).reshape(module.shape)
    for kept, shape in ((0, (320, 1, 1, 1)), (1, (1, 320, 1, 1))):
        scale = torch.rand(shape)
        save_file({**tensors, maker.spellings["kohya"](module, "dora_scale"): scale}, tmp_path / "lora.safetensors")
        bake(tmp_path / "lora.safetensors", base, tmp_path / "out.safetensors", scale=0.5, overwrite=True)
        norm = full.square().sum(dim=[axis for axis in range(4) if axis != kept], keepdim=True).sqrt()
        expected = weight + 0.5 * (full * scale / norm - weight)
        torch.testing.assert_close(load_file(tmp_path / "out.safetensors")[key], expected, rtol=1e-4, atol=1e-5)


def test_tucker_cores_and_differences(maker, tmp_path):
    conv = modules()[CHOSEN[1]]
    base = _checkpoint(tmp_path / "base.safetensors", torch.float32)
    name = "lora_unet_" + conv.name.replace(".", "_")
    core = {"lora_down": (3, 320, 1, 1), "lora_mid": (3, 3, 3, 3), "lora_up": (320, 3, 1, 1)}
    tensors = {f"{name}.{part}.weight": torch.randn(shape) for part, shape in core.items()}
    save_file({**tensors, f"{name}.diff_b": torch.ones(320)}, tmp_path / "lora.safetensors")
    bake(tmp_path / "lora.safetensors", base, tmp_path / "out.safetensors", scale=2)
    before, after = load_file(base), load_file(tmp_path / "out.safetensors")
    x = torch.randn(1, 320, 5, 5)
    expected = x
    for part in core:  # the three convolutions one after another are the change
        expected = torch.nn.functional.conv2d(expected, tensors[f"{name}.{part}.weight"])
    key = f"model.diffusion_model.{conv.ldm}"
    change = after[f"{key}.weight"] - before[f"{key}.weight"]
    torch.testing.assert_close(torch.nn.functional.conv2d(x, change), 2 * expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(after[f"{key}.bias"], before[f"{key}.bias"] + 2)


def test_a_lora_that_does_not_fit_is_refused(maker, tmp_path, capsys):
    base = _checkpoint(tmp_path / "base.safetensors", torch.float16)
    lora = maker.write(tmp_path / "lora.safetensors", "kohya", maker.attention("unet")[:3], alpha=1)
    out = tmp_path / "out.safetensors"
    assert main([str(lora), "--into", str(base), "--out", str(out)]) == 1
    assert "lacks 2 of the 3 modules" in capsys.readouterr().err
    assert main([str(lora), "--into", str(base), "--out", str(base), "--overwrite"]) == 2
    assert main([str(lora), "--into", str(base), "--out", str(lora), "--overwrite"]) == 2
    assert main([str(lora), "--into", str(base), "--out", str(out), "--scale", "nan"]) == 2
    first = maker.write(tmp_path / "lora.safetensors", "kohya", maker.attention("unet")[:1], alpha=1)
    assert main([str(first), "--into", str(base), "--out", str(out), "--scale", "1e6"]) == 1
    assert "too large for F16" in capsys.readouterr().err
    assert not out.exists()
    assert main([str(first), "--into", str(base), "--out", str(out), "--scale", "0.8"]) == 0
    assert convert.read(first).modules.keys() == {CHOSEN[0]}
