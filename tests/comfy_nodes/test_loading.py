"""From a file of any form to patches on a model: completely and exactly, or a one-line error."""

from __future__ import annotations

import copy
import json
import os
import struct

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save, save_file

from convert.miniature import EARLIER
from convert.sd15 import modules

BASE = {"ss_base_model_version": "narrow"}
FORMS = {
    "kohya": ("lora_unet_{_}", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("unet.{.}", ".lora.down.weight", ".lora.up.weight"),
    "peft": ("base_model.model.{.}", ".lora_A.weight", ".lora_B.weight"),
    "attention processors": ("unet.{p}", "_lora.down.weight", "_lora.up.weight"),
    "attention processors, no prefix": ("{p}", "_lora.down.weight", "_lora.up.weight"),
}


@pytest.fixture(scope="module")
def unet():
    """A narrow UNet with Stable Diffusion 1.5's module names."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=12, sample_size=8
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def factors(unet):
    """Module name -> (down, up), random, rank 4, for the paper's 128 modules."""
    draw = torch.Generator().manual_seed(1)
    shapes = {name: tuple(m.weight.shape) for name, m in unet.named_modules() if ".attn" in name and hasattr(m, "weight")}
    assert len(shapes) == 128

    def drawn(*shape):
        return torch.randn(shape, generator=draw) / 3

    return {name: (drawn(4, i), drawn(o, 4)) for name, (o, i) in shapes.items()}


def spelled(form, factors, dtype=torch.float32):
    where, down, up = FORMS[form]
    tensors = {}
    for name, (a, b) in factors.items():
        processor = name.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.").removesuffix(".0")
        key = where.replace("{_}", name.replace(".", "_")).replace("{.}", name).replace("{p}", processor)
        tensors[key + down], tensors[key + up] = a.to(dtype), b.to(dtype)
    return tensors


def host_weights(unet, dtype=torch.float32):
    table = modules()
    return {f"diffusion_model.{table[name].ldm}.weight": m.weight.detach().to(dtype)
            for name, m in unet.named_modules() if name in table and hasattr(m, "weight")}  # fmt: skip


def fused(unet, file, scale):
    """diffusers' own merge, by weight name of the host."""
    network = copy.deepcopy(unet)
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(str(file), unet_config=network.config,
                                                                      return_lora_metadata=True)  # fmt: skip
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=network, metadata=metadata)
    network.fuse_lora(lora_scale=scale)
    table = modules()
    return {f"diffusion_model.{table[name.removesuffix('.base_layer')].ldm}.weight": m.weight.detach()
            for name, m in network.named_modules() if name.removesuffix(".base_layer") in table and hasattr(m, "weight")
            and not hasattr(m, "base_layer")}  # fmt: skip


def loader(pack):
    return pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]()


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_the_merged_weights_are_exactly_those_that_diffusers_fuses(scale, pack, host, patcher, unet, factors, tmp_path) -> None:
    save_file(spelled("diffusers", factors), tmp_path / "diffusers.safetensors", BASE)
    theirs = fused(unet, tmp_path / "diffusers.safetensors", scale)
    model = patcher(host_weights(unet))
    for form in FORMS:
        save_file(spelled(form, factors), host / f"{form}.safetensors", BASE)
        patched, clip, words, _ = loader(pack).apply(model, f"{form}.safetensors", scale, 0.8)
        assert clip is None and words == "" and not model.patches and patched is not model
        assert len(patched.patches) == 128 and patched.patches.keys() <= theirs.keys()
        different = [key for key, weight in theirs.items() if not torch.equal(patched.merged(key), weight)]
        assert not different, form
    assert sum(not torch.equal(weight, model.model.weights[key]) for key, weight in theirs.items()) == 128


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_not_cast(dtype, pack, host, patcher, unet, factors) -> None:
    for form in FORMS:
        save_file(spelled(form, factors, dtype), host / "x.safetensors", BASE)
        patched = loader(pack).apply(patcher(host_weights(unet, torch.float16)), "x.safetensors", 0.5, 0.8)[0]
        table = modules()
        for name, (down, up) in factors.items():
            key = f"diffusion_model.{table[name].ldm}.weight"
            base = patched.model.weights[key].float()
            assert torch.equal(patched.merged(key), base + 0.5 * (up.to(dtype).float() @ down.to(dtype).float()))


def test_scale_zero_returns_the_same_model_and_reads_nothing(pack, host, patcher, unet) -> None:
    (host / "broken.safetensors").write_bytes(b"no LoRA at all")
    model, clip = patcher(host_weights(unet)), patcher({})
    assert loader(pack).apply(model, "broken.safetensors", 0.0, 0.0, clip)[:2] == (model, clip)
    assert loader(pack).apply(model, "broken.safetensors", 0.0, 0.8)[:2] == (model, None)


def test_the_sweep_is_the_loader_at_every_scale(pack, host, patcher, unet, factors) -> None:
    save_file(spelled("peft", factors), host / "x.safetensors", BASE)
    (host / "x.json").write_text(json.dumps({"activation text": "a scribble of"}))
    model = patcher(host_weights(unet))
    node = pack.NODE_CLASS_MAPPINGS["ScribbleLoraSweep"]
    models, clips, labels, words = node().sweep(model, "x.safetensors", "0:1:0.5", clip := patcher({}))
    assert node.OUTPUT_IS_LIST == (True, True, True, False) and words == "a scribble of"
    assert labels == ["scale 0", "scale 0.5", "scale 1"] and clips == [clip] and models[0] is model
    for scale, swept in zip((0.5, 1.0), models[1:]):
        alone = loader(pack).apply(model, "x.safetensors", scale, 0.0)[0]
        assert all(torch.equal(swept.merged(key), alone.merged(key)) for key in alone.patches)


@pytest.fixture
def with_text_encoder(host):
    """SD1.5's real shapes: one module of each network, kohya, its alpha half its rank."""
    tensors = {}
    for name, (o, i) in {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (1280, 1280),
                         "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768)}.items():  # fmt: skip
        tensors |= {f"{name}.lora_down.weight": torch.ones(4, i), f"{name}.lora_up.weight": torch.ones(o, 4),
                    f"{name}.alpha": torch.tensor(2.0)}  # fmt: skip
    save_file(tensors, host / "te.safetensors")
    unet = {"diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight": torch.zeros(1280, 1280)}
    clip = {"clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(768, 768)}
    return unet, clip


def test_the_text_encoder_part_goes_to_clip_at_its_own_scale(pack, patcher, with_text_encoder) -> None:
    unet, clip = (patcher(weights) for weights in with_text_encoder)
    model, encoder, *_ = loader(pack).apply(unet, "te.safetensors", 0.5, 0.25, clip)
    assert {float(model.merged(key).mean()) for key in model.patches} == {0.5 * (2 / 4) * 4}
    assert {float(encoder.merged(key).mean()) for key in encoder.patches} == {0.25 * (2 / 4) * 4}
    assert loader(pack).apply(unet, "te.safetensors", 0.5, 0.0, clip)[1] is clip
    models, clips, *_ = pack.NODE_CLASS_MAPPINGS["ScribbleLoraSweep"]().sweep(unet, "te.safetensors", "0, 1", clip)
    assert len(models) == len(clips) == 2 and clips[0] is clip and len(clips[1].patches) == 1


def test_a_norm_of_the_text_encoder_is_patched_although_the_hosts_map_lacks_it(pack, host, patcher, part) -> None:
    name = "text_model.encoder.layers.0.layer_norm1"
    prefix = "lora_te_" + name.replace(".", "_")
    save_file({f"{prefix}.w_norm": torch.ones(768), f"{prefix}.b_norm": torch.ones(768)}, host / "x.safetensors")
    weights = {f"clip_l.transformer.{name}.{kind}": torch.zeros(768) for kind in ("weight", "bias")}
    keys = part("host").text_encoder_keys(patcher(weights).cond_stage_model, weights)
    adapter = part("lora_files").load("x.safetensors")
    assert part("patching").targets(weights, keys, adapter.text_encoder, adapter) == set(weights)
    bias = next(key for key in weights if key.endswith("bias"))
    with pytest.raises(part("errors").NodeError, match="layer_norm1.bias, which is not in the connected model"):
        part("patching").targets({key: w for key, w in weights.items() if key != bias}, keys, adapter.text_encoder, adapter)


def test_a_text_encoder_part_is_not_dropped_silently(pack, patcher, with_text_encoder, part) -> None:
    with pytest.raises(part("errors").NodeError, match="connect the checkpoint's CLIP .*clip_scale 0 leaves that part off"):
        loader(pack).apply(patcher(with_text_encoder[0]), "te.safetensors", 0.8, 0.8)
    assert loader(pack).apply(patcher(with_text_encoder[0]), "te.safetensors", 0.8, 0.0)[1] is None


def broken(kind, good):
    """The bytes of a sound file, broken in one way."""
    length = struct.unpack("<Q", good[:8])[0]
    tensors = {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.zeros(4, 1280)}
    makers = {
        "empty": lambda: b"",
        "cut off": lambda: good[:-100],
        "header cut off": lambda: good[: length // 2],
        "header damaged": lambda: good[:20] + b"\xff" * 20 + good[40:],
        "a web page": lambda: b"<html>404</html>" * 9,
        "a pickle": lambda: b"PK\x03\x04" + bytes(99),
        "half a pair": lambda: save(tensors),
        "no LoRA": lambda: save({"model.diffusion_model.out.2.weight": torch.zeros(1)}),
    }
    return makers[kind]()


@pytest.mark.parametrize(
    ("kind", "named"),
    [("empty", "is empty; download or copy this file again"), ("cut off", "cut off.*copy this file again"),
     ("header cut off", "copy this file again"),
     ("header damaged", "header"),
     ("a web page", "download"), ("a pickle", "PyTorch.*never opened here.*safetensors version"),
     ("half a pair", "no up; download or copy this file again"), ("no LoRA", "whole checkpoint.*checkpoint folder")],
)  # fmt: skip
def test_a_broken_file_fails_the_node_with_one_sentence(kind, named, pack, host, patcher, unet, factors, part) -> None:
    (host / "sub").mkdir()
    (host / "sub/bad.safetensors").write_bytes(broken(kind, save(spelled("kohya", factors), BASE)))
    model = patcher(host_weights(unet))
    with pytest.raises(part("errors").NodeError, match=named) as caught:
        loader(pack).apply(model, "sub/bad.safetensors", 0.8, 0.8)
    message = str(caught.value)
    assert message.startswith("sub/bad.safetensors: ") and "\n" not in message and str(host) not in message
    assert not model.patches
    text, tag, *_ = pack.NODE_CLASS_MAPPINGS["ScribbleLoraInfo"]().describe("sub/bad.safetensors")["result"]
    assert message.partition(": ")[2][:20] in text and tag == "<lora:bad:1>"


def spoiled(kind, factors):
    tensors, metadata = {key: tensor.clone() for key, tensor in spelled("peft", factors).items()}, dict(BASE)
    first = next(iter(tensors))
    if kind == "NaN":
        tensors[first][0, 0] = float("nan")
    elif kind == "infinite":
        tensors = {key: tensor.half() for key, tensor in tensors.items()}
        tensors[first][0, 0] = float("inf")
    elif kind == "peft DoRA":
        for name, (_, up) in factors.items():
            tensors[f"base_model.model.{name}.lora_magnitude_vector"] = torch.ones(up.shape[0])
    elif kind == "unknown key":
        tensors["lora_unet_something_else.lora_down.weight"] = torch.zeros(4, 4)
    elif kind == "SDXL":
        tensors["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(4, 4)
    elif kind == "SD2":
        metadata = {"ss_v2": "True"}
    elif kind == "LoHa":
        tensors["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"] = torch.zeros(4, 4)
    elif kind == "IA3":
        tensors["lora_unet_mid_block_attentions_0_proj_in.on_input"] = torch.zeros(4)
    elif kind == "SD1.5's shapes":
        metadata = {}
    return tensors, metadata


@pytest.mark.parametrize(
    ("kind", "named"),
    [("NaN", "NaN"), ("infinite", "infinite"), ("peft DoRA", "cannot be applied in ComfyUI.*convert.bake"),
     ("unknown key", "lora_unet_something_else"),
     ("SDXL", "SDXL.*Load LoRA with a checkpoint of that base"), ("SD2", "SD2.*Load LoRA"),
     ("LoHa", "LoHa.*use ComfyUI's own Load LoRA, which reads it"), ("IA3", "IA3.*ComfyUI does not read it$"),
     ("SD1.5's shapes", "shape")],
)  # fmt: skip
def test_a_lora_that_cannot_be_applied_whole_is_refused(kind, named, pack, host, patcher, unet, factors, part) -> None:
    tensors, metadata = spoiled(kind, factors)
    save_file(tensors, host / "bad.safetensors", metadata)
    model = patcher(host_weights(unet))
    with pytest.raises(part("errors").NodeError, match=named) as caught:
        loader(pack).apply(model, "bad.safetensors", 0.8, 0.8)
    assert str(caught.value).startswith("bad.safetensors: ") and "\n" not in str(caught.value)
    assert "can be converted" not in str(caught.value) and not model.patches


def test_a_quantised_model_is_not_refused_for_its_packed_shapes(pack, host, patcher, unet, factors, part) -> None:
    save_file(spelled("kohya", factors), host / "x.safetensors", BASE)
    packed = {key: torch.zeros(weight.numel() // 2, dtype=torch.uint8) for key, weight in host_weights(unet).items()}
    assert len(loader(pack).apply(patcher(packed), "x.safetensors", 0.8)[0].patches) == 128
    halved = {key: torch.zeros(weight.numel() // 2) for key, weight in packed.items()}  # numbers, but too few
    with pytest.raises(part("errors").NodeError, match="0 of its 128 modules"):
        loader(pack).apply(patcher(halved), "x.safetensors", 0.8)


def test_a_lora_of_another_model_is_refused(pack, host, patcher, unet, factors, part) -> None:
    save_file(spelled("diffusers", factors), host / "x.safetensors", BASE)
    weights = host_weights(unet)
    wider = {key: torch.zeros(3, 3) if "attn2.to_k" in key else weight for key, weight in weights.items()}
    fewer = {key: weight for key, weight in weights.items() if "middle_block" not in key}
    for other, fitting in ((wider, 112), (fewer, 120), ({"x": torch.zeros(1)}, 0)):
        model = patcher(other)
        with pytest.raises(part("errors").NodeError, match=f"{fitting} of its 128 modules fit the connected MODEL.*'narrow'"):
            loader(pack).apply(model, "x.safetensors", 0.8, 0.8)
        assert not model.patches


def test_a_lora_of_the_earlier_miniature_is_refused_with_what_to_do(pack, host, patcher, unet, factors, part) -> None:
    save_file(spelled("kohya", factors), host / "x.safetensors", {"ss_base_model_version": EARLIER})
    with pytest.raises(part("errors").NodeError, match="an earlier miniature, which.*no longer has: train it again"):
        loader(pack).apply(patcher({"x": torch.zeros(1)}), "x.safetensors", 0.8)


def test_a_host_that_applies_only_some_patches_is_an_error(pack, host, patcher, unet, factors, part) -> None:
    save_file(spelled("kohya", factors), host / "x.safetensors", BASE)
    model = patcher(host_weights(unet))

    class Forgetful(type(model)):
        def add_patches(self, patches, strength_patch=1.0):
            return super().add_patches(dict(list(patches.items())[1:]), strength_patch)

    with pytest.raises(part("errors").NodeError, match="applied 127 of its 128"):
        loader(pack).apply(Forgetful(model.model), "x.safetensors", 0.8, 0.8)


def test_cached_tensors_can_be_part_of_a_gradient(pack, host, patcher, unet, factors) -> None:
    """ComfyUI runs nodes in inference mode, and a tensor created in it cannot take part in autograd."""
    save_file(spelled("diffusers", factors), host / "x.safetensors", BASE)
    with torch.inference_mode():
        patched = loader(pack).apply(patcher(host_weights(unet)), "x.safetensors", 0.8)[0]
    (up, down, _), scale = next(iter(patched.patches.values()))[0][::-1]
    assert scale == 0.8 and not up.is_inference() and not down.is_inference()
    trained = torch.nn.Parameter(torch.ones(down.shape[1]))
    (up @ (down @ trained)).sum().backward()
    assert trained.grad is not None and bool(trained.grad.abs().sum() > 0)


def test_a_file_replaced_while_it_is_read_is_not_used(pack, host, patcher, unet, factors, part, monkeypatch) -> None:
    save_file(spelled("kohya", factors), host / "x.safetensors", BASE)
    adapter, whole = part("adapter"), part("adapter").convert_bytes

    def replaced_meanwhile(path, **how):
        data = whole(path, **how)
        save_file(spelled("peft", factors), host / "new.part", BASE)
        os.replace(host / "new.part", path)
        return data

    monkeypatch.setattr(adapter, "convert_bytes", replaced_meanwhile)
    expected = "x.safetensors: was replaced while it was being read; queue the workflow again"
    with pytest.raises(part("errors").NodeError, match=expected):
        loader(pack).apply(patcher(host_weights(unet)), "x.safetensors", 0.8)


def test_the_file_is_read_once_until_it_changes(pack, host, patcher, unet, factors, part, monkeypatch) -> None:
    adapter, advice, reads, headers = part("adapter"), part("advice"), [], []
    whole, header = adapter.convert_bytes, advice.open_container
    monkeypatch.setattr(adapter, "convert_bytes", lambda path, **how: (reads.append(path), whole(path, **how))[1])
    monkeypatch.setattr(advice, "open_container", lambda path: (headers.append(path), header(path))[1])
    node, model = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"], patcher(host_weights(unet))
    save_file(spelled("kohya", factors), host / "x.safetensors", BASE)
    before = node.IS_CHANGED(lora_name="x.safetensors", scale=1, clip_scale=1)
    for scale in (0.1, 0.2, 1.0):
        merged = node().apply(model, "x.safetensors", scale, 0.0)[0]
    assert len(reads) == len(headers) == 1 and node.IS_CHANGED(lora_name="x.safetensors") == before
    doubled = {key: tensor * 2 if "lora_up" in key else tensor for key, tensor in load_file(host / "x.safetensors").items()}
    save_file(doubled, host / "new.part", BASE)
    os.replace(host / "new.part", host / "x.safetensors")  # the same size; the time differs
    assert node.IS_CHANGED(lora_name="x.safetensors") != before
    again = node().apply(model, "x.safetensors", 0.5, 0.0)[0]
    assert len(reads) == len(headers) == 2
    assert all(torch.equal(again.merged(key), merged.merged(key)) for key in merged.patches)  # half of the double


def test_changes_of_a_peft_configuration_or_a_card_are_noticed(pack, host, patcher, unet, factors) -> None:
    node = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]
    save_file(spelled("peft", factors), host / "adapter_model.safetensors", BASE)
    seen = {node.IS_CHANGED("adapter_model.safetensors")}
    means = []
    for alpha in (4, 16):
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha}
        (host / "adapter_config.json").write_text(json.dumps(config))
        seen.add(node.IS_CHANGED("adapter_model.safetensors"))
        model = node().apply(patcher(host_weights(unet)), "adapter_model.safetensors", 1.0, 0.0)[0]
        key = next(iter(model.patches))
        means.append(model.merged(key) - model.model.weights[key])
    (host / "adapter_model.json").write_text(json.dumps({"activation text": "x"}))
    seen.add(node.IS_CHANGED("adapter_model.safetensors"))
    assert len(seen) == 4
    torch.testing.assert_close(means[1], means[0] * 4)
