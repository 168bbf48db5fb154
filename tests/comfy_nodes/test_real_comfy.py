"""The nodes against ComfyUI's own code, on a narrow UNet: `COMFYUI_CHECKOUT=<folder of ComfyUI> pytest tests/comfy_nodes`.

Runs in an environment with ComfyUI's requirements; starts no server and loads no checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convert.miniature import OUT_BIAS
from convert.sd15 import modules

CHECKOUT = os.environ.get("COMFYUI_CHECKOUT")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="COMFYUI_CHECKOUT names no folder of ComfyUI")

NARROW = {"ss_base_model_version": "narrow"}
UNET_CONFIG = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 12,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
}  # fmt: skip
FORMS = {
    "kohya": ("lora_unet_{_}", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("unet.{.}", ".lora.down.weight", ".lora.up.weight"),
    "peft": ("base_model.model.{.}", ".lora_A.weight", ".lora_B.weight"),
}


@pytest.fixture(scope="module")
def comfy():
    """ComfyUI's modules, for the CPU."""
    sys.path.insert(0, str(CHECKOUT))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.lora
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    yield comfy
    sys.path.remove(str(CHECKOUT))


@pytest.fixture(scope="module")
def unet(comfy):
    """A real MODEL: `ModelPatcher` around `BaseModel`, with SD1.5's module names."""
    torch.manual_seed(0)
    config = comfy.supported_models.SD15({**UNET_CONFIG})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, device=torch.device("cpu"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def factors(unet):
    """Module name -> (down, up) for the 128 projections, random, rank 4."""
    draw, weights = torch.Generator().manual_seed(1), unet.model.state_dict()
    found = {}
    for name, module in modules().items():
        weight = weights.get(f"diffusion_model.{module.ldm}.weight")
        if ".attn" in name and weight is not None:
            found[name] = (torch.randn(4, weight.shape[1], generator=draw), torch.randn(weight.shape[0], 4, generator=draw))
    assert len(found) == 128
    return found


@pytest.fixture
def loras(tmp_path, monkeypatch) -> Path:
    """A folder that ComfyUI's `folder_paths` lists."""
    paths = types.ModuleType("folder_paths")
    paths.get_filename_list = lambda kind: [path.name for path in tmp_path.glob("*.safetensors")]  # type: ignore[attr-defined]
    paths.get_full_path = lambda kind, name: str(tmp_path / name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    return tmp_path


def spelled(form, factors) -> dict[str, torch.Tensor]:
    where, down, up = FORMS[form]
    tensors = {}
    for name, (a, b) in factors.items():
        key = where.replace("{_}", name.replace(".", "_")).replace("{.}", name)
        tensors[key + down], tensors[key + up] = a.clone(), b.clone()
    return tensors


def merged(comfy, patcher, patches, key) -> torch.Tensor:
    """The weight as ComfyUI's sampler sees it."""
    weight = patcher.model.state_dict()[key].clone()
    return comfy.lora.calculate_weight(patches.get(key, []), weight, key)


def expected(patcher, factors, scale) -> dict[str, torch.Tensor]:
    weights = patcher.model.state_dict()
    keys = {name: f"diffusion_model.{modules()[name].ldm}.weight" for name in factors}
    return {keys[name]: weights[keys[name]] + scale * (up @ down) for name, (down, up) in factors.items()}


@pytest.mark.parametrize("form", FORMS)
def test_the_hosts_arithmetic_applies_every_module(form, pack, comfy, unet, factors, loras) -> None:
    save_file(spelled(form, factors), loras / "x.safetensors", NARROW)
    patched = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]().apply(unet, "x.safetensors", 0.75)[0]
    for key, weight in expected(unet, factors, 0.75).items():
        torch.testing.assert_close(merged(comfy, patched, patched.patches, key), weight, rtol=1e-5, atol=1e-5)
    assert len(patched.patches) == 128 and not unet.patches


def test_the_hosts_own_way_is_the_same_for_kohya_and_nothing_for_diffusers(pack, comfy, unet, factors, loras) -> None:
    keys = comfy.lora.model_lora_keys_unet(unet.model, {})
    theirs = comfy.lora.load_lora(spelled("kohya", factors), keys)
    save_file(spelled("kohya", factors), loras / "x.safetensors", NARROW)
    patched = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]().apply(unet, "x.safetensors", 0.75)[0]
    stock = unet.clone()
    assert set(stock.add_patches(theirs, 0.75)) == set(patched.patches)
    assert all(torch.equal(merged(comfy, stock, stock.patches, key), merged(comfy, patched, patched.patches, key))
               for key in patched.patches)  # fmt: skip
    assert not comfy.lora.load_lora(spelled("diffusers", factors), keys)  # why this pack exists


def test_every_layer_of_the_unet_can_be_patched(pack, comfy, unet, part, loras) -> None:
    """So we need no map of our own beside ComfyUI's."""
    weights = unet.model.state_dict()
    shapes = {name: tuple(weights[f"diffusion_model.{module.ldm}.weight"].shape)
              for name, module in modules().items() if module.scope == "unet" and not module.is_norm}  # fmt: skip
    tensors = {}
    for name, (rows, columns, *kernel) in shapes.items():
        prefix = "lora_unet_" + name.replace(".", "_")
        tensors[f"{prefix}.lora_down.weight"] = torch.ones(1, columns, *kernel)
        tensors[f"{prefix}.lora_up.weight"] = torch.ones(rows, 1, *[1 for _ in kernel])
    save_file(tensors, loras / "x.safetensors", NARROW)
    patched = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]().apply(unet, "x.safetensors", 0.5)[0]
    assert len(patched.patches) == len(shapes) == 282
    for key in patched.patches:
        torch.testing.assert_close(merged(comfy, patched, patched.patches, key), weights[key] + 0.5)


def test_the_norms_of_the_text_encoder_are_in_our_map_because_comfyuis_leaves_them_out(comfy, part) -> None:
    encoder = [module for module in modules().values() if module.scope == "text_encoder"]
    weights = {f"clip_l.transformer.{module.ldm}.weight": torch.zeros(1) for module in encoder}
    network = types.SimpleNamespace(state_dict=lambda: weights)
    names = {"lora_te_" + module.name.replace(".", "_"): module.is_norm for module in encoder}
    theirs, ours = comfy.lora.model_lora_keys_clip(network, {}), part("host").text_encoder_keys(network, weights)
    assert names.keys() <= ours.keys() and {ours[name] for name in names} == weights.keys()
    assert [name for name in names if name not in theirs] == [name for name, is_norm in names.items() if is_norm]


def test_lycoris_parts_go_through_the_hosts_reader(pack, comfy, unet, factors, loras) -> None:
    """DoRA in LyCORIS's spelling and a whole difference: `comfy.weight_adapter` and `load_lora` read them from our names."""
    pytest.importorskip("comfy.weight_adapter", reason="this ComfyUI computes DoRA in another way")
    names = list(factors)[:2]
    down, up = factors[names[0]]
    tensors = spelled("kohya", {names[0]: (down, torch.zeros_like(up))})  # its whole effect is the magnitude
    prefixes = ["lora_unet_" + name.replace(".", "_") for name in names]
    rows = up.shape[0]
    tensors[f"{prefixes[0]}.dora_scale"] = torch.full((rows, 1), 2.0)
    key = f"diffusion_model.{modules()[names[1]].ldm}.weight"
    tensors[f"{prefixes[1]}.diff"] = torch.ones_like(unet.model.state_dict()[key])
    save_file(tensors, loras / "x.safetensors", NARROW)
    patched = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]().apply(unet, "x.safetensors", 1.0)[0]
    dora = merged(comfy, patched, patched.patches, f"diffusion_model.{modules()[names[0]].ldm}.weight")
    torch.testing.assert_close(dora.norm(dim=1), torch.full((rows,), 2.0))
    torch.testing.assert_close(merged(comfy, patched, patched.patches, key), unet.model.state_dict()[key] + 1)


@pytest.fixture
def hooks(comfy):
    return pytest.importorskip("comfy.hooks", reason="this ComfyUI is older than hooks")


def hook_patches(comfy, patcher, group):
    """The patches that the host would sample with, by weight."""
    clone = patcher.clone()
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    clone.register_all_hook_patches(group, target)
    return clone.get_combined_hook_patches(group)


@pytest.mark.parametrize("form", FORMS)
def test_the_hook_applies_every_module_at_the_scale_of_its_keyframe(
    form, pack, comfy, hooks, unet, factors, loras
) -> None:
    save_file(spelled(form, factors), loras / "x.safetensors", NARROW)
    group = pack.NODE_CLASS_MAPPINGS["ScribbleLoraHook"]().create("x.safetensors", 0.75)[0]
    for strength in (1.0, 0.5):
        frames = comfy.hooks.HookKeyframeGroup()
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=0.0))
        scheduled = group.clone()
        scheduled.set_keyframes_on_hooks(frames)
        patches = hook_patches(comfy, unet, scheduled)
        for key, weight in expected(unet, factors, 0.75 * strength).items():
            torch.testing.assert_close(merged(comfy, unet, patches, key), weight, rtol=1e-5, atol=1e-5)
    stock = hook_patches(comfy, unet, comfy.hooks.create_hook_lora(spelled(form, factors), 0.75, 0.75))
    assert len(stock) == (128 if form == "kohya" else 0)


def test_the_miniature_is_known_by_its_weights_in_the_loader_and_the_hook(
    pack, comfy, hooks, unet, factors, loras, caplog
) -> None:  # fmt: skip
    save_file(spelled("kohya", factors), loras / "theirs.safetensors", NARROW)
    save_file(spelled("kohya", factors), loras / "ours.safetensors", {**NARROW, "scribble_base": "miniature"})
    layer = unet.model.diffusion_model.out[2]
    before = layer.bias.detach().clone()
    for bias, told in ((before, "ours.safetensors: was trained on"), (OUT_BIAS, "theirs.safetensors: was not trained on")):
        layer.bias.data.copy_(torch.as_tensor(bias))
        for name in ("ours.safetensors", "theirs.safetensors"):
            caplog.clear()
            pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]().apply(unet, name, 0.5)
            hook_patches(comfy, unet, pack.NODE_CLASS_MAPPINGS["ScribbleLoraHook"]().create(name, 0.5)[0])
            lines = [record.getMessage() for record in caplog.records if "Scribble LoRA" in record.getMessage()]
            assert len(lines) == (2 if told.startswith(name) else 0) and all(told in line for line in lines)
    layer.bias.data.copy_(before)


def test_hooks_are_chained_and_a_wrong_model_is_an_error(pack, comfy, hooks, unet, factors, loras, part) -> None:
    node = pack.NODE_CLASS_MAPPINGS["ScribbleLoraHook"]()
    save_file(spelled("peft", factors), loras / "x.safetensors", NARROW)
    (loras / "x.json").write_text(json.dumps({"preferred weight": 0.5}))
    first = node.create("x.safetensors", 0.25)[0]
    both, _, used = node.create("x.safetensors", 0.25, prev_hooks=first, use_recommended_scale=True)
    assert used == 0.5 and len(first.hooks) == 1 and len(both.hooks) == 2
    patches = hook_patches(comfy, unet, both)
    for key, weight in expected(unet, factors, 0.25 + 0.5).items():
        torch.testing.assert_close(merged(comfy, unet, patches, key), weight, rtol=1e-5, atol=1e-5)
    other = comfy.model_patcher.ModelPatcher(torch.nn.Linear(2, 2), torch.device("cpu"), torch.device("cpu"))
    other.model.model_config = unet.model.model_config
    with pytest.raises(part("errors").NodeError, match="0 of its 128 modules fit the connected MODEL"):
        hook_patches(comfy, other, first)


def test_a_text_link_passes_the_hosts_check_of_types(pack, comfy, loras) -> None:
    validation = pytest.importorskip("comfy_execution.validation", reason="this ComfyUI is older than its check")

    names = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"].INPUT_TYPES()["required"]["lora_name"][0]
    assert validation.validate_node_input("STRING", names) and not validation.validate_node_input("MODEL", names)
