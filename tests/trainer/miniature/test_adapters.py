"""LoRAs of the miniature: narrow to wide, which hosts read as SD1.5's, and back; one trained on the wide file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from convert import read, sd15
from convert.errors import JobError
from trainer.miniature import adapters, widen
from trainer.miniature.narrow import NAME, TEXT_LAYERS

RANK = 2


def narrow_shape(module: sd15.Module) -> tuple[int, ...]:
    rule = widen.rule(widen.UNET if module.scope == sd15.UNET else widen.TEXT, module.name)
    return (module.shape[0] // rule.rows.factor, module.shape[1] // rule.columns.factor, *module.shape[2:])


def narrow_modules() -> list[sd15.Module]:
    """Every module that a LoRA of the miniature can patch: 282 of the UNet and 12 in the text encoder's two layers."""
    return [module for module in sd15.modules().values() if not module.is_norm and not any(
        f".layers.{layer}." in module.name for layer in range(TEXT_LAYERS, sd15.TEXT_LAYERS))]


@pytest.fixture(scope="module")
def narrow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kohya file of the narrow miniature with factors on every module."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for module in narrow_modules():
        out, into, *kernel = narrow_shape(module)
        name = ("lora_unet_" if module.scope == sd15.UNET else "lora_te_") + module.name.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, into, *kernel, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, RANK, *[1] * len(kernel), generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    path = tmp_path_factory.mktemp("lora") / "narrow.safetensors"
    save_file(tensors, path, {"ss_base_model_version": NAME})
    return path


@pytest.fixture(scope="module")
def wide_file(narrow_file, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "wide.safetensors"
    path.write_bytes(adapters.lora_bytes(adapters.widened(read(narrow_file)), "wide"))
    return path


def test_a_widened_lora_is_one_of_sd15s_to_every_reader(wide_file) -> None:
    lora = read(wide_file)
    assert lora.base == "sd_v1" and lora.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert lora.metadata[adapters.KEY] == "miniature"
    assert len(lora.in_scope(sd15.UNET)) == 282 and len(lora.in_scope(sd15.TEXT_ENCODER)) == 12
    assert all(module.shape == module.module.shape for module in lora.modules.values())


def test_its_change_of_a_weight_is_the_narrow_change_widened(narrow_file, wide_file) -> None:
    narrow, wide = load_file(narrow_file), load_file(wide_file)
    for module in narrow_modules()[::7]:
        name = ("lora_unet_" if module.scope == sd15.UNET else "lora_te_") + module.name.replace(".", "_")
        changes = [torch.einsum("or,ri...->oi...", f[f"{name}.lora_up.weight"].flatten(1), f[f"{name}.lora_down.weight"])
                   for f in (narrow, wide)]
        rule = widen.rule(widen.UNET if module.scope == sd15.UNET else widen.TEXT, module.name)
        assert torch.allclose(rule.weight(changes[0]), changes[1], atol=1e-5), module.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_to_wide_to_narrow_is_the_same_lora(narrow_file, tmp_path, dtype) -> None:
    tensors = {name: tensor.to(dtype) if "lora_" in name.rpartition(".lora_")[1] else tensor
               for name, tensor in load_file(narrow_file).items()}
    save_file(tensors, tmp_path / "narrow.safetensors", {"ss_base_model_version": NAME})
    (tmp_path / "wide.safetensors").write_bytes(
        adapters.lora_bytes(adapters.widened(read(tmp_path / "narrow.safetensors")), "wide"))
    back = adapters.narrowed(read(tmp_path / "wide.safetensors"))
    assert back.base == NAME and adapters.KEY not in back.metadata
    again = load(adapters.lora_bytes(back, "narrow"))
    assert set(again) == set(tensors)
    rounding = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.allclose(again[name].float(), tensor.float(), rtol=rounding, atol=1e-6), name


def test_a_lora_trained_on_the_wide_checkpoint_is_refused_in_one_line(wide_file, tmp_path) -> None:
    tensors = load_file(wide_file)
    name = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    tensors[name][3] += 0.01 * tensors[name].abs().max()
    save_file(tensors, tmp_path / "trained.safetensors")
    with pytest.raises(JobError, match="was trained on a full-size checkpoint .*proj_in.*--base") as caught:
        adapters.narrowed(read(tmp_path / "trained.safetensors"))
    assert "\n" not in str(caught.value)


def test_a_lora_on_a_silent_layer_of_the_text_encoder_is_refused(tmp_path) -> None:
    name = "lora_te_text_model_encoder_layers_5_mlp_fc1"
    save_file({f"{name}.lora_down.weight": torch.ones(1, 768), f"{name}.lora_up.weight": torch.ones(3072, 1)},
              tmp_path / "text.safetensors")
    with pytest.raises(JobError, match=r"layers\.5"):
        adapters.narrowed(read(tmp_path / "text.safetensors"))


@pytest.mark.parametrize("columns", [False, True])
def test_dora_magnitudes_are_the_norms_of_the_widened_weights(columns) -> None:
    torch.manual_seed(0)
    for name in ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "conv_in", "mid_block.attentions.0.proj_in",
                 "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q"):
        rule, weight = widen.rule(widen.UNET, name), torch.randn(8, 8, 1, 1)
        norms = [w.flatten(1).norm(dim=1)[:, None, None, None] if not columns else w.norm(dim=0, keepdim=True)
                 for w in (weight, rule.weight(weight))]
        to_wide, to_narrow = adapters._PARTS["dora_columns" if columns else "dora_rows"]
        assert torch.allclose(to_wide(rule, norms[0]), norms[1], rtol=1e-4), name
        assert torch.allclose(to_narrow(rule, norms[1]), norms[0], rtol=1e-4), name


def in_web_ui(tensors: dict[str, torch.Tensor], name: str, weight: torch.Tensor) -> torch.Tensor:
    """AUTOMATIC1111 v1.10.1's change of `weight`: extensions-builtin/Lora/network.py, `finalize_updown`."""
    down, up = (tensors[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
    merged = weight + tensors[f"{name}.alpha"] / RANK * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    norm = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
    norm = norm.reshape(merged.shape[1], *[1] * (merged.ndim - 1)).transpose(0, 1)
    return merged * (tensors[f"{name}.dora_scale"] / norm) - weight


def test_hosts_apply_a_widened_dora_as_the_narrow_change_widened(narrow_file, tmp_path) -> None:
    tensors, generator, weights = load_file(narrow_file), torch.Generator().manual_seed(1), {}
    for module in narrow_modules():
        if module.name == "time_embedding.linear_1":  # its wide form has columns of zeros: the trainer refuses it
            continue
        name = ("lora_unet_" if module.scope == sd15.UNET else "lora_te_") + module.name.replace(".", "_")
        shape = narrow_shape(module)
        weights[name] = torch.randn(shape, generator=generator), widen.rule(
            widen.UNET if module.scope == sd15.UNET else widen.TEXT, module.name)
        tensors[f"{name}.dora_scale"] = torch.rand(1, shape[1], *[1] * (len(shape) - 2), generator=generator) + 0.5
    save_file(tensors, tmp_path / "narrow.safetensors", {"ss_base_model_version": NAME})
    wide = load(adapters.lora_bytes(adapters.widened(read(tmp_path / "narrow.safetensors")), "wide"))
    for name, (weight, rule) in list(weights.items())[::7]:
        change = rule.weight(in_web_ui(tensors, name, weight))
        torch.testing.assert_close(in_web_ui(wide, name, rule.weight(weight)), change, rtol=1e-4, atol=1e-5)
