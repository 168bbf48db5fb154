"""Our files in other libraries: diffusers' loaders and peft give the same network from every form.

The base is a narrow UNet with Stable Diffusion 1.5's module names; the metadata says so.
"""

import copy
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import convert
from convert.matrix.change import change, changed_weight
from convert.matrix.network import read_network
from convert.sd15 import modules

BASE = {"ss_base_model_version": "narrow"}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
ALL_TARGETS = [*TARGETS, "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj", "ff.net.0.proj", "ff.net.2"]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        sample_size=8,
    )
    assert {n for n, m in network.named_modules() if hasattr(m, "weight")} >= {
        name for name, module in modules().items() if module.scope == "unet" and ".attn" in name
    }
    return network.eval()


@pytest.fixture(scope="module")
def text_encoder():
    torch.manual_seed(1)
    config = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        vocab_size=64,
        projection_dim=8,
    )
    return CLIPTextModel(config).eval()


def _trained(network, *, use_dora=False, targets=TARGETS, alpha=6.0, rslora=False, patterns=None):
    """A copy with a peft LoRA whose every factor is random, as after a training."""
    network = copy.deepcopy(network)
    config = LoraConfig(
        r=4,
        lora_alpha=alpha,
        target_modules=targets,
        use_dora=use_dora,
        use_rslora=rslora,
        alpha_pattern=patterns or {},
    )
    inject_adapter_in_model(config, network)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in name else noise / 3)
    return network, config


def _unet_output(network):
    draw = torch.Generator().manual_seed(3)
    x_t, prompt = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 5, 12, generator=draw)
    with torch.no_grad():
        return network(x_t, 7, prompt).sample


def _save(network, config, path, prefix="base_model.model.", **extra):
    """What peft keeps of a LoRA, as raw peft files have it, with its configuration beside it."""
    path.mkdir()
    state = {prefix + key: value.contiguous() for key, value in get_peft_model_state_dict(network).items()}
    save_file(state, path / "adapter_model.safetensors", BASE)
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (path / "adapter_config.json").write_text(json.dumps({**fields, **extra}, default=str))
    return path


def _load_into_unet(unet, file):
    """Loaded with the function that `pipeline.load_lora_weights` uses."""
    network = copy.deepcopy(unet)
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(file), unet_config=network.config, return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=network, metadata=metadata)
    return network


@pytest.mark.parametrize(
    ("form", "how"),
    [
        ("kohya", {}),
        ("kohya", {"rslora": True}),
        ("diffusers", {}),
        ("diffusers", {"rslora": True}),
        # not from kohya: diffusers 0.42 loses an alpha that differs between the attention layers of a kohya file
        ("diffusers", {"patterns": {"mid_block.*to_q": 2.0}}),
    ],
)
def test_diffusers_loads_our_file_to_the_same_output(form, how, unet, tmp_path):
    trained, config = _trained(unet, **how)
    source = _save(trained, config, tmp_path / "adapter")
    convert.convert_file(source, tmp_path / "out.safetensors", to=form)
    loaded = _load_into_unet(unet, tmp_path / "out.safetensors")
    expected = _unet_output(trained)
    assert not torch.allclose(expected, _unet_output(unet), atol=1e-3)
    torch.testing.assert_close(_unet_output(loaded), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("form", "use_dora"), [("kohya", False), ("diffusers", False), ("diffusers", True)])
def test_diffusers_loads_convolutions_and_feed_forwards_too(form, use_dora, unet, tmp_path):
    trained, config = _trained(unet, targets=ALL_TARGETS, use_dora=use_dora)
    convert.convert_file(_save(trained, config, tmp_path / "adapter"), tmp_path / "out.safetensors", to=form)
    loaded = _load_into_unet(unet, tmp_path / "out.safetensors")
    torch.testing.assert_close(_unet_output(loaded), _unet_output(trained), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_diffusers_own_save_converts_and_comes_back(use_dora, unet, tmp_path):
    trained, _ = _trained(unet, use_dora=use_dora)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "saved", unet_lora_layers=get_peft_model_state_dict(trained),
        unet_lora_adapter_metadata=trained.peft_config["default"].to_dict(),
    )  # fmt: skip
    source = tmp_path / "saved" / "pytorch_lora_weights.safetensors"
    convert.convert_file(source, tmp_path / "out.safetensors", to="diffusers", metadata=BASE)
    assert convert.read(tmp_path / "out.safetensors").alpha == 6.0
    loaded = _load_into_unet(unet, tmp_path / "out.safetensors")
    torch.testing.assert_close(_unet_output(loaded), _unet_output(trained), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_loads_our_folder_and_its_merged_weights_are_ours(use_dora, unet, tmp_path):
    trained, config = _trained(unet, use_dora=use_dora, targets=ALL_TARGETS, patterns={"conv1": 3.0})
    source = _save(trained, config, tmp_path / "adapter")
    convert.convert_file(source, tmp_path / "there.safetensors", to="diffusers")
    convert.convert_file(tmp_path / "there.safetensors", tmp_path / "back", to="peft")
    loaded = PeftModel.from_pretrained(copy.deepcopy(unet), str(tmp_path / "back"))
    torch.testing.assert_close(_unet_output(loaded), _unet_output(trained), rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload().state_dict()
    lora = convert.read(tmp_path / "back")
    assert len(lora.modules) == 128 + 32 + 22 * 3 + 32 and lora.uses_dora == use_dora
    networks = read_network(tmp_path / "back").modules
    for name in lora.modules:
        ours = changed_weight(unet.get_submodule(name).weight.detach().numpy(), networks[name], 1.0)
        torch.testing.assert_close(torch.from_numpy(ours), merged[f"{name}.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("form", "use_dora"), [("kohya", False), ("diffusers", False), ("diffusers", True)])
def test_diffusers_loads_our_text_encoder(form, use_dora, text_encoder, tmp_path):
    trained, config = _trained(text_encoder, targets=TEXT_TARGETS, use_dora=use_dora)
    convert.convert_file(_save(trained, config, tmp_path / "adapter"), tmp_path / "out.safetensors", to=form)
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(tmp_path / "out.safetensors"), return_lora_metadata=True
    )
    loaded = copy.deepcopy(text_encoder)
    StableDiffusionPipeline.load_lora_into_text_encoder(
        state, network_alphas=alphas, text_encoder=loaded, metadata=metadata
    )
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert not torch.allclose(trained(tokens)[0], text_encoder(tokens)[0], atol=1e-3)
        torch.testing.assert_close(loaded(tokens)[0], trained(tokens)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_loads_our_text_encoder_folder(use_dora, text_encoder, tmp_path):
    trained, config = _trained(text_encoder, targets=TEXT_TARGETS, use_dora=use_dora)
    convert.convert_file(_save(trained, config, tmp_path / "adapter"), tmp_path / "d.safetensors", to="diffusers")
    convert.convert_file(tmp_path / "d.safetensors", tmp_path / "back", to="peft")
    loaded = PeftModel.from_pretrained(copy.deepcopy(text_encoder), str(tmp_path / "back"))
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens)[0], trained(tokens)[0], rtol=1e-5, atol=1e-5)


def test_our_conversion_is_right_where_diffusers_own_is_wrong(maker, tmp_path):
    """Its alpha is the rank as an integer; true alpha 8 at rank 4 is twice the strength."""
    from diffusers.utils import convert_state_dict_to_kohya

    config = {"unet.r": 4, "unet.lora_alpha": 8}
    tensors = maker.tensors("diffusers with lora_A", maker.attention("unet"))
    save_file(tensors, tmp_path / "in.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    ours = load_file(tmp_path / "out.safetensors")
    theirs = convert_state_dict_to_kohya({key.replace("unet.", "base_model.model."): t for key, t in tensors.items()})
    alphas = {key: value for key, value in theirs.items() if key.endswith(".alpha")}
    assert all(value == 4 and not value.is_floating_point() for value in alphas.values())
    assert all(value == 8 and value.is_floating_point() for key, value in ours.items() if key.endswith(".alpha"))


def test_the_change_is_up_times_down_on_every_layer_of_the_real_shapes(maker, tmp_path):
    chosen = [m for m in maker.linear_and_conv() if "down_blocks.0" in m.name or "layers.3." in m.name]
    source = maker.write(tmp_path / "in.safetensors", "kohya", chosen, alpha=2)
    tensors = load_file(source)
    for module in read_network(source).modules.values():
        down, up = (tensors[maker.spellings["kohya"](module.module, part)] for part in ("down", "up"))
        if down.ndim == 4:  # a convolution followed by a 1x1 convolution
            expected = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
        else:
            expected = up @ down
        ours = change(module).matrix().reshape(module.shape)
        torch.testing.assert_close(torch.from_numpy(ours), 0.5 * expected, rtol=1e-4, atol=1e-4)
