"""The miniature as a Stable Diffusion 1.5: a small one, widened by 2, 8 and 4, read by the trainer's loader and diffusers."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from convert import read
from convert.errors import JobError, UsageError
from trainer.base import single_file
from trainer.miniature import adapters, checkpoint, packed
from trainer.miniature.__main__ import parser, run
from trainer.miniature.narrow import NAME
from trainer.miniature.packed import Narrow, pack, read_narrow, unpack, write_narrow
from trainer.miniature.widen import Factors

BY = Factors(unet=2, text_heads=1, text_channels=4, heads=1, vae=8)


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(sample_size=8, block_out_channels=(32, 64, 64, 64), layers_per_block=2, norm_num_groups=32,
                                attention_head_dim=8, cross_attention_dim=16)


def text() -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=16, intermediate_size=64, num_hidden_layers=1,
                                        num_attention_heads=1, max_position_embeddings=77, hidden_act="quick_gelu",
                                        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407))


def vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(4, 8, 8, 8), layers_per_block=2, norm_num_groups=4, latent_channels=4,
                         sample_size=64, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """A narrow miniature of random weights that float16 holds exactly."""
    patch = pytest.MonkeyPatch()
    for name, made in (("narrow_unet", unet), ("narrow_text_encoder", text), ("narrow_vae", vae)):
        patch.setattr(packed, name, made)
    torch.manual_seed(0)
    states = {}
    for part, model in (("unet", unet()), ("text_encoder", text()), ("vae", vae())):
        state = {name.removeprefix("text_model."): p.data for name, p in model.named_parameters()}
        states[part] = {name: (p + 0.1 * torch.randn_like(p) * (p.ndim == 1)).half().float() for name, p in state.items()}
    yield Narrow(**states, words=("apple", "star"))
    patch.undo()


@pytest.fixture(scope="module")
def written(small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("file") / "miniature.safetensors"
    checkpoint.write_checkpoint(target, small, BY)
    return target


def predicted(models, states: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return models["unet"](torch.randn(1, 4, 8, 8), torch.tensor([500]), states).sample


def test_the_trainers_own_loader_takes_the_file_for_a_checkpoint_that_computes_the_narrow_function(small, written) -> None:
    wide, narrow = single_file.load(single_file.inspect(written), torch.float32), small.models()
    assert wide["unet"].config.block_out_channels == [64, 128, 128, 128]
    tokens = torch.tensor([[49406, 3055, *[49407] * 75]])
    with torch.no_grad():
        a, b = (models["text_encoder"](tokens).last_hidden_state for models in (narrow, wide))
        assert torch.allclose(a.repeat_interleave(4, 2), b, atol=5e-3)
        x = torch.rand(1, 3, 64, 64) * 2 - 1
        z, wide_z = (models["vae"].encode(x).latent_dist.mean for models in (narrow, wide))
        assert torch.allclose(z, wide_z, atol=5e-3)
        assert torch.allclose(narrow["vae"].decode(z).sample, wide["vae"].decode(z).sample, atol=2e-2)
    assert torch.allclose(predicted(narrow, a), predicted(wide, b), atol=2e-2)  # float16 rounds a third of the weights


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers file on the small UNet's attention, strong enough to change the picture."""
    torch.manual_seed(3)
    tensors = {}
    for name, layer in unet().named_modules():
        if re.fullmatch(r".*attn[12]\.(to_[qkv]|to_out\.0)", name):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features) / 2
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2) / 4
    path = tmp_path_factory.mktemp("lora") / "narrow.safetensors"
    save_file(tensors, path, {"ss_base_model_version": NAME})
    return path


def drawn(models, lora: bytes | None, folder: Path) -> torch.Tensor:
    """A picture in [0, 255] by four steps of DDIM with guidance, from one starting noise."""
    if lora is not None:
        (folder / "lora.safetensors").write_bytes(lora)
        models["unet"].load_lora_adapter(folder, weight_name="lora.safetensors", prefix="unet")
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(4)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        states = models["text_encoder"](torch.tensor([[49406, 3055, *[49407] * 75], [49406, *[49407] * 76]])).last_hidden_state
        for t in scheduler.timesteps:
            told, free = models["unet"](torch.cat([z, z]), t, states).sample.chunk(2)
            z = scheduler.step(free + 7 * (told - free), t, z).prev_sample
        return models["vae"].decode(z / 0.18215).sample.add(1).mul(127.5).clamp(0, 255)


def test_the_wide_network_with_the_wide_lora_draws_the_narrow_picture(small, written, lora, tmp_path) -> None:
    wide_lora = adapters.lora_bytes(adapters.widened(read(lora), BY), "wide", "diffusers")
    plain, narrow = drawn(small.models(), None, tmp_path), drawn(small.models(), lora.read_bytes(), tmp_path)
    assert (plain - narrow).abs().mean() > 5  # the LoRA shows
    wide = single_file.load(single_file.inspect(written), torch.float32)  # for its configuration
    for part in packed.PARTS:  # float32: nothing is rounded to half on the way
        state = {tensor.name: tensor.rule.weight(tensor.narrow) for tensor in checkpoint.wide_tensors(small, BY)
                 if tensor.part == part}
        prefix = "text_model." if part == "text_encoder" and hasattr(wide[part], "text_model") else ""
        wide[part].load_state_dict({prefix + name: tensor for name, tensor in state.items()})
    assert (drawn(wide, wide_lora, tmp_path) - narrow).abs().max() < 255e-4
    from_file = drawn(single_file.load(single_file.inspect(written), torch.float32), wide_lora, tmp_path)
    assert (from_file - narrow).abs().max() < 2


def test_the_file_is_always_byte_for_byte_the_same(small, written, tmp_path) -> None:
    again = tmp_path / "again.safetensors"
    checkpoint.write_checkpoint(again, small, BY)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(written.read_bytes()).digest()


def test_the_diffusers_folder_is_a_pipeline_that_agrees_with_the_file(small, written, tmp_path) -> None:
    checkpoint.write_diffusers(tmp_path / "pipe", small, BY)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", local_files_only=True)
    wide = single_file.load(single_file.inspect(written), torch.float32)
    assert pipe.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    for part in ("unet", "vae", "text_encoder"):
        theirs = wide[part].state_dict()
        state = getattr(pipe, part).state_dict()
        assert all(torch.equal(tensor.float(), theirs[name].float()) for name, tensor in state.items())


def test_invalid_targets(small, written, tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="exists"):
        checkpoint.write_checkpoint(written, small, BY)
    with pytest.raises(UsageError, match="no folder"):
        checkpoint.write_checkpoint(tmp_path / "none" / "x.safetensors", small, BY)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(JobError, match="needs 0.0 GB, but only 0.0 GB are free"):
        checkpoint.write_checkpoint(tmp_path / "x.safetensors", small, BY)
    assert not list(tmp_path.iterdir())


def test_packing_keeps_every_number_within_half_a_step_and_writes_equal_files(small, tmp_path) -> None:
    states = {part: dict(getattr(small, part)) for part in packed.PARTS}
    del states["text_encoder"][packed.EMBEDDING]
    rows, known = torch.randn(3, 64), [320, 3055]
    files = []
    for name in ("one", "two"):
        write_narrow(tmp_path / name, pack(states, rows, known), ["apple"], {"license": "MIT"})
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    for name in ("one.gz", "two.gz"):
        write_narrow(tmp_path / name, pack(states, rows, known), ["apple"], {"license": "MIT"})
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    zipped, back = read_narrow(tmp_path / "one.gz"), read_narrow(tmp_path / "one")
    assert zipped.words == back.words and torch.equal(zipped.unet["conv_in.weight"], back.unet["conv_in.weight"])
    assert back.words == ("apple",)
    for part in packed.PARTS:
        for name, tensor in states[part].items():
            step = tensor.flatten(1).abs().amax(1) / packed.WHOLE[part][0] if tensor.ndim > 1 else tensor.abs() / 1024
            apart = (getattr(back, part)[name] - tensor).abs().flatten(1 if tensor.ndim > 1 else 0)
            assert (apart <= step.view(-1, *[1] * (apart.ndim - 1)) / 2 + 1e-7).all(), name
    table = back.text_encoder[packed.EMBEDDING]
    assert torch.equal(table[[320, 3055]], rows[:2].half().float())
    assert (table[100] - rows[2]).abs().max() < 0.035 and not torch.equal(table[100], table[101])
    assert torch.equal(unpack(pack(states, rows, known)).unet["conv_in.weight"], back.unet["conv_in.weight"])


def test_the_command_reports_missing_files(tmp_path, capsys) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        run(parser().parse_args(["--words", "--networks", str(tmp_path / "none")]))
