"""DoRA along the hosts' axis: peft's arithmetic on the transposed layer, AUTOMATIC1111's on the file, and a complete run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from safetensors.torch import load_file

import convert
from convert.errors import JobError, UsageError
from tests.drawings import write_drawings
from tests.trainer.test_text_encoder import base_of, narrow_text_encoder, token_ids
from trainer.__main__ import main
from trainer.kernels import Fused
from trainer.lora import adapter, dora
from trainer.lora.lora_file import read_lora
from trainer.recipe import Recipe
from trainer.training.checkpoint_lora import checkpoint_lora

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(rank=4, alpha=2.0, dora=True, targets="locon", conv_rank=2, conv_alpha=1.0, text_encoder=True)


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv = torch.nn.Linear(6, 5), torch.nn.Conv2d(6, 5, 3, padding=1, stride=2)


def decomposed(layer: torch.nn.Module) -> PeftLinear:
    """`layer` as a trained DoRA: its factors and magnitudes are far from their initial values."""
    from peft import inject_adapter_in_model

    holder = torch.nn.Sequential(layer)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["0"], init_lora_weights="gaussian")
    inject_adapter_in_model(config, holder, "default")
    dora.decompose(holder[0])
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        holder[0].lora_B["default"].weight.normal_(generator=g)
        holder[0].dora_scale.mul_(torch.rand(holder[0].dora_scale.shape, generator=g) + 0.5)
    return holder[0]


def in_web_ui(layer: PeftLinear) -> torch.Tensor:
    """AUTOMATIC1111 v1.10.1, extensions-builtin/Lora/network.py: `apply_weight_decompose`, after alpha / rank."""
    weight, down, up = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    merged = weight + 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    norm = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
    norm = norm.reshape(merged.shape[1], *[1] * (merged.ndim - 1)).transpose(0, 1)
    return merged * (layer.dora_scale / norm)


def test_it_is_pefts_dora_of_the_transposed_layer() -> None:
    """Values and gradients; peft normalises output rows, which are the transposed weight's input columns."""
    mine = decomposed(Layers().linear)
    turned = torch.nn.Linear(5, 6, bias=False)
    turned.weight.data = mine.get_base_layer().weight.data.T.contiguous()
    theirs = PeftLinear(turned, "default", LoraConfig(use_dora=True, lora_alpha=2, r=4), r=4, lora_alpha=2)
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(mine.lora_B["default"].weight.T)
        theirs.lora_B["default"].weight.copy_(mine.lora_A["default"].weight.T)
        theirs.lora_magnitude_vector["default"].weight.copy_(mine.dora_scale[0])
    x = torch.randn(7, 6)
    ours = mine(x)
    expected = torch.nn.functional.linear(x, theirs(torch.eye(5)), mine.get_base_layer().bias)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    wanted = torch.randn(ours.shape)
    (ours * wanted).sum().backward()
    (expected * wanted).sum().backward()
    pairs = [(mine.lora_A["default"].weight.grad, theirs.lora_B["default"].weight.grad.T),
             (mine.lora_B["default"].weight.grad, theirs.lora_A["default"].weight.grad.T),
             (mine.dora_scale.grad[0], theirs.lora_magnitude_vector["default"].weight.grad)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_layer_computes_with_the_web_uis_weight_at_every_scale(kind: str) -> None:
    layer = decomposed(getattr(Layers(), kind))
    x = torch.randn(3, 6) if kind == "linear" else torch.randn(3, 6, 8, 8)
    base = layer.get_base_layer()
    full = in_web_ui(layer)

    def with_weight(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if kind == "linear":
            return torch.nn.functional.linear(x, weight, base.bias)
        return torch.nn.functional.conv2d(x, weight, base.bias, base.stride, base.padding)

    for scale in (0.0, 0.6, 1.0):
        layer.set_scale("default", scale)
        wanted = with_weight(base.weight + scale * (full - base.weight), x)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    layer.set_scale("default", torch.tensor([0.0, 0.6, 1.0]).view(-1, *[1] * (x.ndim - 1)))
    each = [with_weight(base.weight + scale * (full - base.weight), x[k : k + 1]) for k, scale in enumerate((0.0, 0.6, 1.0))]
    torch.testing.assert_close(layer(x), torch.cat(each), rtol=1e-4, atol=1e-5)


def networks() -> tuple[UNet2DConditionModel, torch.nn.Module]:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, cross_attention_dim=8,
                                attention_head_dim=2)
    return unet.eval().requires_grad_(False), narrow_text_encoder()


def test_it_starts_as_the_base_and_its_file_is_the_same_here(tmp_path: Path) -> None:
    unet, text = networks()
    x, ids = torch.randn(2, 4, 8, 8), token_ids(2)
    with torch.no_grad():
        before, states = unet(x, 7, torch.zeros(2, 5, 8)).sample, text(ids).last_hidden_state
        factors = adapter.attach(unet, RECIPE) + adapter.attach_text_encoder(text, RECIPE)
        torch.testing.assert_close(unet(x, 7, torch.zeros(2, 5, 8)).sample, before)
        torch.testing.assert_close(text(ids).last_hidden_state, states)
    assert sum(name.endswith(".dora_scale") for name, _ in factors) == 276 + 72 == len(factors) // 3  # no shortcuts here
    for _, factor in factors:
        factor.data += 0.1 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(factor.numel()))
    saved = adapter.save_dora(unet, RECIPE, tmp_path, text)
    out = tmp_path / "kohya.safetensors"
    convert.convert_file(saved, out, metadata={"ss_base_model_version": "like_sd_v1"})
    lora = convert.read(out)
    assert {module.dora for module in lora.modules.values()} == {"columns"}
    assert {(m.rank, m.alpha) for m in lora.modules.values()} == {(4, 2.0), (2, 1.0)}
    for form in ("diffusers", "peft"):
        with pytest.raises(JobError, match="per input column"):
            convert.convert_file(out, tmp_path / "other", to=form)
    with torch.no_grad():
        wanted = unet(x, 7, text(ids).last_hidden_state).sample
        base = base_of(*networks())
        read_lora(out).attach(base)
        found = base.unet(x, 7, base.text_encoder(ids).last_hidden_state).sample
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        with Fused(unet):  # the kernels do not touch a DoRA's layers
            torch.testing.assert_close(unet(x, 7, text(ids).last_hidden_state).sample, wanted, rtol=1e-4, atol=1e-5)
    scale = load_file(out)["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale"]
    module = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.equal(scale, module.dora_scale.data) and scale.shape == (1, 8)


def test_a_run_of_it_resumes_to_the_bit_and_draws(tmp_path: Path, random_base: Path) -> None:
    from trainer.sample.__main__ import main as sample

    write_drawings(tmp_path / "drawings", per_category=8, seed=1)
    common = ["--base", str(random_base), "--data", str(tmp_path / "drawings"), "--categories", "apple,star",
              "--per-category", "5", "--batch", "4", "--accumulation", "1", "--learning-rate", "1e-2", "--device", "cpu",
              "--checkpoint-every", "2", "--cache", str(tmp_path / "cache"), "--dora", "--rank", "2", "--no-preview",
              "--lr-schedule", "constant"]

    def trained(name: str, steps: int) -> Path:
        out = tmp_path / f"{name}.safetensors"
        assert main([*common, "--out", str(out), "--run", str(tmp_path / name), "--steps", str(steps)]) == 0
        return out

    trained("cut", 2)
    cut, whole = load_file(trained("cut", 4)), load_file(trained("whole", 4))
    assert cut.keys() == whole.keys() and all(torch.equal(cut[key], whole[key]) for key in cut)
    out = tmp_path / "whole.safetensors"
    said = convert.read(out).metadata
    assert '"dora_wd": "True"' in said["ss_network_args"] and '"dora": true' in said["scribble_recipe"]
    assert not (tmp_path / "whole" / "pytorch_lora_weights.safetensors").exists()
    first = out.read_bytes()
    assert trained("whole", 4).read_bytes() == first  # nothing to do
    checkpoint_lora(tmp_path / "whole", 4, read_lora(out).recipe, out, tmp_path / "four.safetensors")
    four = load_file(tmp_path / "four.safetensors")
    assert four.keys() == whole.keys() and all(torch.equal(four[key], whole[key]) for key in four)
    assert read_lora(tmp_path / "four.safetensors").digest == read_lora(out).digest
    assert sample([str(out), "--base", str(random_base), "--prompt", "a scribble of apple", "--sampling-steps", "1",
                   "--scales", "0,1", "--out", str(tmp_path / "grid.png"), "--device", "cpu"]) == 0


def test_it_cannot_continue_from_another_file() -> None:
    with pytest.raises(UsageError, match="--dora and --init"):
        Recipe(dora=True, init="x.safetensors")


def test_a_layer_with_a_column_of_zeros_is_refused() -> None:
    layer = Layers().linear
    dora.check_columns({"layer": layer})
    with torch.no_grad():
        layer.weight[:, 2] = 0
    with pytest.raises(UsageError, match="--dora: layer has input columns of zeros, and"):
        dora.check_columns({"layer": layer})
    with pytest.raises(UsageError, match=r"time_embedding.linear_1 has .* once it is widened"):
        dora.check_columns({"time_embedding.linear_1": torch.nn.Linear(4, 4)}, narrow=True)
