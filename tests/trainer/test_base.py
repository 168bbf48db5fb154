"""A base loads the same from a folder and from one file, without the network; anything but SD1.5 is refused by name."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from convert.errors import JobError, UsageError
from convert.sd15 import modules
from tests.random_base import build_tokenizer
from trainer.base.facts import inspect_base
from trainer.base.load import load_base
from trainer.base.sd15 import SCHEDULER_CONFIG, TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG, family_of
from trainer.miniature import drawings
from trainer.miniature.narrow import narrow_unet
from trainer.recipe import Recipe

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow SD1.5 with random weights, as diffusers writes it, fp32."""
    place = tmp_path_factory.mktemp("narrow")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(place / "tokenizer")
    UNet2DConditionModel.from_config(
        UNET_CONFIG | {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 64}).save_pretrained(place / "unet")
    AutoencoderKL.from_config(VAE_CONFIG | {"block_out_channels": [32, 32, 32, 64]}).save_pretrained(place / "vae")
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG | narrow | {"vocab_size": len(tokenizer)})).save_pretrained(
        place / "text_encoder")
    DDPMScheduler.from_config(SCHEDULER_CONFIG).save_pretrained(place / "scheduler")
    return place


def ldm_names(folder: Path) -> dict[str, torch.Tensor]:
    """The folder's weights under the names of an LDM checkpoint, spelled from convert's table and the rules below."""
    table = modules()
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    tensors = {}
    for name, tensor in unet.items():
        module, kind = name.rsplit(".", 1)
        tensors[f"{UNET}{table[module].ldm}.{kind}"] = tensor
    for name, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        ldm = vae_name(name)
        tensors[VAE + ldm] = tensor[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", ldm) else tensor
    for name, tensor in load_file(folder / "text_encoder/model.safetensors").items():
        tensors[TEXT + name.removeprefix("text_model.")] = tensor
    return tensors


def vae_name(name: str) -> str:
    rules = [(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"), (r"downsamplers\.0", "downsample"),
             (r"down_blocks\.(\d)", r"down.\1"), (r"up_blocks\.(\d)\.resnets\.(\d)", r"up.<\1>.block.\2"),
             (r"up_blocks\.(\d)\.upsamplers\.0", r"up.<\1>.upsample"), (r"conv_shortcut", "nin_shortcut"),
             (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
             (r"mid_block\.attentions\.0\.", "mid.attn_1."), (r"group_norm", "norm"), (r"to_(q|k|v)\.", r"\1."),
             (r"to_out\.0", "proj_out"), (r"conv_norm_out", "norm_out")]  # fmt: skip
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"<(\d)>", lambda match: str(3 - int(match[1])), name)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(base: object, tokenizer: Path | None = None, dtype: torch.dtype = torch.float32, said: list[str] | None = None):
    recipe = Recipe(base=str(base), tokenizer=str(tokenizer or ""))
    return load_base(recipe, dtype=dtype, say=(said if said is not None else []).append)


def assert_equal_models(one, other) -> None:
    for part in ("unet", "vae", "text_encoder"):
        a, b = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), f"{part} {name}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_single_file_is_the_folder_it_was_made_of(folder, tmp_path, dtype, no_network) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in ldm_names(folder).items()}, file)
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    for weights in half.rglob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    said: list[str] = []
    single, parts = load(file, folder / "tokenizer", said=said), load(half)
    assert_equal_models(single, parts)
    for base in (single, parts):
        assert base.family == "like_sd_v1" and base.resolution == 512
        assert base.tokenizer.model_max_length == 77
        assert base.unet.dtype == base.vae.dtype == base.text_encoder.dtype == torch.float32
        assert not any(p.requires_grad or p.is_meta for m in (base.unet, base.vae, base.text_encoder) for p in m.parameters())
    assert torch.equal(single.scheduler.alphas_cumprod, parts.scheduler.alphas_cumprod)
    assert "fits only this base" in said[0]
    ours, theirs = single.unet.config, parts.unet.config
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}


def test_only_the_unet_takes_the_dtype(folder) -> None:
    base = load(folder, dtype=torch.bfloat16)
    assert (base.unet.dtype, base.vae.dtype, base.text_encoder.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    base.release_encoders()
    assert base.vae is None and base.text_encoder is None and base.unet is not None


def test_names_of_older_files(folder, tmp_path) -> None:
    """Text encoders without `text_model.`, with position ids and EMA copies; folders with `text_model.`, as on the hub."""
    tensors = {name.replace("transformer.text_model.", "transformer."): t for name, t in ldm_names(folder).items()}
    tensors["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {f"model_ema.{n}": torch.zeros(1) for n in range(150)} | {"betas": torch.zeros(1000)}
    save_file(tensors, tmp_path / "old.safetensors")
    hub = tmp_path / "hub"
    shutil.copytree(folder, hub)
    weights = hub / "text_encoder/model.safetensors"
    names = load_file(weights)
    save_file({"text_model." + name.removeprefix("text_model."): t for name, t in names.items()}, weights, {"format": "pt"})
    wanted = load(folder)
    assert_equal_models(load(tmp_path / "old.safetensors", folder / "tokenizer"), wanted)
    assert_equal_models(load(hub), wanted)


def test_a_file_that_predicts_v_is_recognised(folder, tmp_path) -> None:
    save_file(ldm_names(folder) | {"v_pred": torch.zeros(1)}, tmp_path / "v.safetensors")
    assert load(tmp_path / "v.safetensors", folder / "tokenizer").scheduler.config.prediction_type == "v_prediction"
    assert load(folder).scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(("said", "side"), [("128x128", 128), ("384x512", 384), ("768x768", 512), ("0x0", 512), ("wide", 512)])
def test_a_file_made_for_smaller_pictures_is_trained_on_those(folder, tmp_path, said, side) -> None:
    file = tmp_path / "small.safetensors"
    save_file(ldm_names(folder), file, {"modelspec.resolution": said})
    recipe = Recipe(base=str(file), tokenizer=str(folder / "tokenizer"))
    assert inspect_base(recipe).resolution == side
    assert load(file, folder / "tokenizer").resolution == side


def test_identity_follows_the_weights(folder, tmp_path) -> None:
    copied, changed = tmp_path / "copied", tmp_path / "changed"
    for place in (copied, changed):
        shutil.copytree(folder, place)
    weights = changed / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["quant_conv.bias"] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert load(folder).identity == load(copied).identity != load(changed).identity


def test_fp16_files_are_used_if_they_are_enough(folder, tmp_path) -> None:
    both, only = tmp_path / "both", tmp_path / "only"
    for place in (both, only):
        shutil.copytree(folder, place)
        for weights in list(place.rglob("*.safetensors")):
            half = {name: tensor.half() for name, tensor in load_file(weights).items()}
            save_file(half, weights.with_suffix(".fp16.safetensors"), {"format": "pt"})
            if place is only:
                weights.unlink()
    assert_equal_models(load(both), load(folder))  # fp32 is available and requested
    assert_equal_models(load(only, dtype=torch.float16), load(both, dtype=torch.float16))
    assert load(only).unet.dtype == torch.float32


def test_weights_in_several_files(folder, tmp_path) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded)
    shutil.rmtree(sharded / "unet")
    wanted = load(folder)
    wanted.unet.save_pretrained(sharded / "unet", max_shard_size="2MB")
    assert (sharded / "unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    assert_equal_models(load(sharded), wanted)
    next((sharded / "unet").glob("*-00002-*")).unlink()
    with pytest.raises(JobError, match="cannot be loaded"):
        load(sharded)


def test_sizes_are_those_published() -> None:
    """The parameter counts of SD1.5's UNet, VAE and text encoder, as in the released weights."""
    with torch.device("meta"):
        made = (UNet2DConditionModel.from_config(UNET_CONFIG), AutoencoderKL.from_config(VAE_CONFIG),
                CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG)))  # fmt: skip
    assert [sum(p.numel() for p in m.parameters()) for m in made] == [859_520_964, 83_653_863, 123_060_480]


def test_families() -> None:
    assert family_of(UNET_CONFIG, "x") == ("sd_v1", "")
    assert family_of(dict(narrow_unet().config), "x") == ("scribble_narrow", "")
    narrow = UNET_CONFIG | {"block_out_channels": [80, 160, 320, 320]}
    assert family_of(narrow, "x")[0] == "like_sd_v1"


@pytest.mark.parametrize(("change", "message"), [
    ({"cross_attention_dim": 1024}, "is Stable Diffusion 2"),
    ({"cross_attention_dim": 2048, "addition_embed_type": "text_time"}, "is SDXL"),
    ({"in_channels": 9}, "is an inpainting model"),
    ({"in_channels": 8}, "8 input channels"),
    ({"layers_per_block": 1}, "does not have Stable Diffusion 1.5's blocks"),
])  # fmt: skip
def test_other_folders_are_refused_by_name(folder, tmp_path, change, message) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "unet/config.json").write_text(json.dumps(UNET_CONFIG | change))
    with pytest.raises(UsageError, match=re.escape(message)):
        load(other)


def _header_only(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(("shapes", "message"), [
    ({"lora_unet_mid_block_x.lora_down.weight": (4, 8)}, "is a LoRA"),
    ({"unet.mid_block.attentions.0.to_q.lora.down.weight": (4, 8)}, "is a LoRA"),
    ({"base_model.model.mid_block.to_q.lora_A.weight": (4, 8)}, "is a LoRA"),
    ({"conditioner.embedders.0.transformer.x": (1,), CONV_IN: (1, 4, 3, 3)}, "is SDXL"),
    ({"cond_stage_model.model.ln_final.weight": (8,), CONV_IN: (1, 4, 3, 3)}, "is Stable Diffusion 2"),
    ({TO_K: (2, 1024)}, "is Stable Diffusion 2"),
    ({CONV_IN: (1, 9, 3, 3)}, "is an inpainting model"),
    ({CONV_IN: (1, 8, 3, 3)}, "8 input channels"),
    ({"control_model.input_blocks.0.0.weight": (1,)}, "is a ControlNet"),
    ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "is a transformer model"),
    ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "is a transformer model"),
    ({"emb_params": (1, 768)}, "is a textual-inversion"),
    ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "is one part of a model"),
    ({"encoder.conv_in.weight": (1,)}, "is one part of a model"),
    ({CONV_IN: (1, 4, 3, 3)}, "has no VAE and no text encoder"),
    ({"something.else": (1,)}, "is not a Stable Diffusion checkpoint"),
])  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path, shapes, message) -> None:
    file = tmp_path / "other.safetensors"
    save_file(_header_only(**shapes), file)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "error", "message"), [
    (b"<!DOCTYPE html><html>404</html>", JobError, "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", JobError, "Git LFS pointer"),
    (b"", JobError, "is empty"),
    (b"PK\x03\x04" + bytes(100), JobError, "pickle"),
    ("cut", JobError, "cut off"),
    ("lacks vae", UsageError, "has no VAE"),
    ("lacks text", UsageError, "has no text encoder"),
    ("lacks one", JobError, "lacks a tensor"),
    ("lacks width", JobError, "lacks model.diffusion_model.input_blocks.4.0.out_layers.3.weight"),
    ("misshapen", JobError, "has shape (7, 64)"),
    ("flat", JobError, "a tensor has too few dimensions"),
    ("scalar", JobError, "a tensor has too few dimensions"),
    ("fp8", UsageError, "not a quantized one"),
])  # fmt: skip
def test_broken_files_are_named(folder, tmp_path, content, error, message) -> None:
    file = tmp_path / "broken.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(_damaged(ldm_names(folder), content), file)
        if content == "cut":
            file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(error, match=re.escape(message)) as caught:
        load(file, folder / "tokenizer")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def _damaged(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    one = f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    if how == "lacks vae":
        return {name: t for name, t in tensors.items() if not name.startswith(VAE)}
    if how == "lacks text":
        return {name: t for name, t in tensors.items() if not name.startswith(TEXT)}
    if how == "lacks one":
        return {name: t for name, t in tensors.items() if name != one}
    if how == "lacks width":
        return {name: t for name, t in tensors.items() if name != f"{UNET}input_blocks.4.0.out_layers.3.weight"}
    if how == "misshapen":
        return tensors | {one: torch.zeros(7, 64)}
    if how == "flat":
        return tensors | {f"{UNET}input_blocks.0.0.weight": torch.zeros(4)}
    if how == "scalar":
        return tensors | {f"{VAE}encoder.down.0.block.0.conv1.weight": torch.zeros(())}
    if how == "fp8":
        return tensors | {one: tensors[one].to(torch.float8_e4m3fn)}
    return tensors


def test_missing_files_and_pickles_are_refused(tmp_path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04")
    for base, message in [(tmp_path / "model.ckpt", "PyTorch pickle"), (tmp_path / "none.safetensors", "no such file"),
                          ("./nothing", "no such file"), (tmp_path, "has no unet/config.json"),
                          ("https://huggingface.co/owner/model-v1.5/tree/main", "on the hub, owner/model-v1.5$"),
                          ("https://civitai.com/models/4384", "is a web address: download the file")]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            load(base)
        with pytest.raises(UsageError, match=message):  # and before any data is fetched
            inspect_base(Recipe(base=str(base)))


@pytest.mark.parametrize(("damage", "error", "message"), [
    ("unet/diffusion_pytorch_model.safetensors cut", JobError, "diffusion_pytorch_model.safetensors: .*short|cut off|beyond"),
    ("vae/config.json broken", JobError, "vae/config.json: cannot be read as JSON"),
    ("text_encoder/config.json gone", UsageError, "has no text_encoder/config.json"),
    ("vae/diffusion_pytorch_model.safetensors pickle", UsageError, "only a pickle"),
    ("scheduler/scheduler_config.json gone", UsageError, "has no scheduler/scheduler_config.json"),
    ("unet/diffusion_pytorch_model.safetensors lacks", JobError, "its weights lack conv_in.bias"),
    ("tokenizer/vocab.json broken", JobError, "its tokenizer cannot be read"),
])  # fmt: skip
def test_damaged_folders_are_named(folder, tmp_path, damage, error, message) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    name, how = damage.split()
    file = broken / name
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif how == "broken":
        file.write_text("{")
        (broken / "tokenizer/tokenizer.json").unlink(missing_ok=True) if "tokenizer" in name else None
    elif how == "lacks":
        save_file({n: t for n, t in load_file(file).items() if n != "conv_in.bias"}, file, {"format": "pt"})
    else:
        file.rename(file.with_suffix(".bin" if how == "pickle" else ".gone"))
    with pytest.raises(error, match=message) as caught:
        load(broken)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_together(folder, tmp_path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    shutil.rmtree(mixed / "unet")
    UNet2DConditionModel.from_config(
        UNET_CONFIG | {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32}).save_pretrained(mixed / "unet")
    with pytest.raises(JobError, match="do not fit together"):
        load(mixed)


def test_the_embedded_model_loads(no_network) -> None:
    base = load("miniature")
    assert (base.family, base.resolution, base.tokenizer.model_max_length) == ("scribble_narrow", 128, 77)
    assert inspect_base(Recipe(base="miniature")).resolution == base.resolution
    assert len(base.words) >= 24 and set(base.words) == set(drawings.words())
