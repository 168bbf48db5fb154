"""The table of modules against the real networks, on the meta device."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel

from convert import names
from convert.sd15 import TEXT_ENCODER, UNET, modules


@pytest.fixture(scope="module")
def unet():
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


@pytest.fixture(scope="module")
def text_encoder():
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(**sizes))


def _weights(network):
    return {n: tuple(m.weight.shape) for n, m in network.named_modules() if getattr(m, "weight", None) is not None}


def test_unet_names_and_shapes_are_diffusers(unet):
    ours = {module.name: module.shape for module in modules().values() if module.scope == UNET}
    assert ours == _weights(unet)


def test_text_encoder_names_and_shapes_are_transformers(text_encoder):
    ours = {m.name.removeprefix("text_model."): m.shape for m in modules().values() if m.scope == TEXT_ENCODER}
    real = {n.removeprefix("text_model."): shape for n, shape in _weights(text_encoder).items()}
    assert {n: shape for n, shape in real.items() if "embedding" not in n} == ours


def test_ldm_names_are_those_that_diffusers_converts_to_its_own(unet):
    ldm, ours = {}, {}
    for number, module in enumerate(m for m in modules().values() if m.scope == UNET):
        for part in ("weight", "bias"):
            if f"{module.name}.{part}" in unet.state_dict():
                marker = torch.tensor([number, part == "bias"])
                ldm[f"model.diffusion_model.{module.ldm}.{part}"] = ours[f"{module.name}.{part}"] = marker
    converted = convert_ldm_unet_checkpoint(ldm, dict(unet.config))
    assert converted.keys() == unet.state_dict().keys()
    assert all(torch.equal(converted[name], marker) for name, marker in ours.items())


def test_ldm_names_of_the_samplers():
    """As the keys of the released checkpoint have them; diffusers' conversion accepts either place for an upsampler."""
    ldm = {module.ldm for module in modules().values()}
    samplers = {name for name in ldm if name.endswith((".op", ".conv"))}
    assert samplers == {
        "input_blocks.3.0.op", "input_blocks.6.0.op", "input_blocks.9.0.op",
        "output_blocks.2.1.conv", "output_blocks.5.2.conv", "output_blocks.8.2.conv",
    }  # fmt: skip


def _kohya_names(network, containers, prefix):
    """sd-scripts' own rule: every linear layer and convolution inside these blocks, dots turned to underscores."""
    found = set()
    for outer, block in network.named_modules():
        if isinstance(block, containers):
            for inner, layer in block.named_modules():
                if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                    found.add(f"{prefix}.{outer}.{inner}".replace(".", "_"))
    return found


def test_kohya_names_of_the_unet_are_those_of_its_rule(unet):
    ours = {names.module_name("kohya", m) for m in modules().values() if m.scope == UNET and not m.is_norm}
    in_blocks = {n for n in ours if not n.startswith(("lora_unet_time_embedding", "lora_unet_conv_"))}
    blocks = (Transformer2DModel, ResnetBlock2D, Downsample2D, Upsample2D)
    assert in_blocks == _kohya_names(unet, blocks, "lora_unet")
    transformers_only = _kohya_names(unet, (Transformer2DModel,), "lora_unet")
    assert len(transformers_only) == 192
    assert transformers_only < ours


def test_kohya_names_of_the_text_encoder(text_encoder):
    ours = {names.module_name("kohya", m) for m in modules().values() if m.scope == TEXT_ENCODER and not m.is_norm}
    layers = {n for n, m in text_encoder.named_modules() if isinstance(m, torch.nn.Linear)}
    assert ours == {f"lora_te_text_model_{n.removeprefix('text_model.')}".replace(".", "_") for n in layers}
    assert len(ours) == 72


def test_the_papers_lora_has_128_modules_and_797184_numbers(maker):
    chosen = maker.attention(UNET)
    assert len(chosen) == 128
    assert sum(4 * (m.shape[0] + m.shape[1]) for m in chosen) == 797_184
