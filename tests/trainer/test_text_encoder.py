"""Training the text encoder: 72 modules, peft's arithmetic, kohya's names, the same result in diffusers; clip skip."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import convert
from convert.errors import UsageError
from tests.drawings import write_drawings
from tests.trainer.test_training import encoded_set
from trainer.__main__ import main
from trainer.base.load import Base, load_base
from trainer.data.records import Drawing
from trainer.evaluate.losses import HeldOutLoss
from trainer.layers import TARGETS
from trainer.lora import adapter
from trainer.lora.lora_file import read_lora
from trainer.recipe import Recipe
from trainer.sample.sampler import Sampler
from trainer.training import checkpoints
from trainer.training.devices import choose
from trainer.training.loop import backward, train
from trainer.training.objective import TextEncoder, choose_objective
from trainer.training.processes import Processes
from trainer.training.state import State, Training, prepare

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
RECIPE = Recipe(batch=2, accumulation=2, rank=2, alpha=1.0, learning_rate=1e-2, text_encoder=True, text_encoder_rate=2e-2)


def narrow_text_encoder(layers: int = 12) -> CLIPTextModel:
    torch.manual_seed(5)
    config = CLIPTextConfig(vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
                            max_position_embeddings=5, eos_token_id=2)
    return CLIPTextModel(config).eval().requires_grad_(False)


def token_ids(count: int = 3) -> torch.Tensor:
    return torch.randint(3, 64, (count, 5), generator=torch.Generator().manual_seed(2))


def learning(run: Path, recipe: Recipe = RECIPE) -> tuple[Training, State, CLIPTextModel]:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, cross_attention_dim=8,
                                attention_head_dim=2)
    unet.eval().requires_grad_(False)
    text_encoder = narrow_text_encoder()
    factors = adapter.attach(unet, recipe) + adapter.attach_text_encoder(text_encoder, recipe)
    objective = choose_objective(recipe, DDPMScheduler(beta_schedule="scaled_linear"), CPU, text_encoder)
    t, state = prepare(recipe=recipe, unet=unet, factors=factors, objective=objective, total=4, checkpoint_every=2, run=run,
                       encoded=replace(encoded_set(), embeddings=token_ids()), held_out=None, processes=Processes(),
                       compute=choose("cpu"))
    return t, state, text_encoder


def test_72_modules_start_as_the_base() -> None:
    text_encoder, ids = narrow_text_encoder(), token_ids()
    before = text_encoder(ids).last_hidden_state
    factors = adapter.attach_text_encoder(text_encoder, RECIPE)
    assert len(factors) == 2 * 72 and all(name.startswith("text_encoder.encoder.layers.") for name, _ in factors)
    torch.testing.assert_close(text_encoder(ids).last_hidden_state, before)
    again = adapter.attach_text_encoder(narrow_text_encoder(), RECIPE)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(factors, again, strict=True))


def test_the_gradient_is_that_of_embeddings_computed_by_hand(tmp_path: Path) -> None:
    """autograd through transformers' model with peft's LoRA and diffusers' UNet, without any of our code."""
    t, state, text_encoder = learning(tmp_path)
    for _, factor in state.factors:
        factor.data += 0.05 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(factor.numel()))
    draw = t.draw(0)
    backward(t, state, draw)
    mine = [factor.grad.clone() for factor in state.parameters]
    state.gradient.zero_()
    x_0 = t.encoded.mean[draw.picture, draw.view] + t.encoded.std[draw.picture, draw.view] * draw.posterior
    noisy = DDPMScheduler(beta_schedule="scaled_linear").add_noise(x_0, draw.eps, draw.timestep)
    prompt = text_encoder(token_ids()[t.encoded.caption_index[draw.picture]]).last_hidden_state
    (t.unet(noisy, draw.timestep, prompt).sample - draw.eps).square().mean().backward()
    assert any(factor.grad.any() for name, factor in state.factors if name.startswith("text_encoder."))
    for (name, factor), gradient in zip(state.factors, mine, strict=True):
        torch.testing.assert_close(gradient, factor.grad, rtol=1e-3, atol=1e-7, msg=name)


def test_it_learns_at_its_own_rate_until_its_share_of_the_steps(tmp_path: Path) -> None:
    recipe = replace(RECIPE, text_encoder_until=0.5, lr_schedule="constant")
    t, state, _ = learning(tmp_path, recipe)
    copies = []
    for _ in train(t, state):
        assert [group["lr"] for group in state.optimizer.param_groups] == [1e-2, 2e-2 if state.step <= 2 else 0.0]
        copies.append({name: factor.detach().clone() for name, factor in state.factors})
    text = [name for name in copies[0] if name.startswith("text_encoder.")]
    assert all(torch.equal(copies[1][name], copies[3][name]) for name in text)
    assert not all(torch.equal(copies[0][name], copies[1][name]) for name in text)
    assert not all(torch.equal(copies[1][name], copies[3][name]) for name in copies[0].keys() - set(text))


@pytest.mark.parametrize("ended", ["stopped", "killed"])
@pytest.mark.parametrize("optimizer", [
    "adamw", pytest.param("prodigy", marks=pytest.mark.skipif(not find_spec("prodigyopt"), reason="needs prodigyopt"))])
def test_it_resumes_to_the_bit(optimizer: str, ended: str, tmp_path: Path) -> None:
    """A killed run's newest checkpoint is of step 2, a stopped run's of step 3."""
    rate = {"adamw": 1e-2, "prodigy": 1.0}[optimizer]
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=rate, text_encoder_rate=rate / 2 if rate < 1 else 0.0,
                     text_encoder_until=0.8)
    t, straight, _ = learning(tmp_path / "straight", recipe)
    list(train(t, straight))
    t, first, _ = learning(tmp_path / "cut", recipe)
    for step in train(t, first, lambda: ended == "stopped" and first.step == 3):
        if step.done == 3:
            break
    t, second, _ = learning(tmp_path / "cut", recipe)
    assert checkpoints.restore(tmp_path / "cut" / "checkpoints", second, {}, pytest.fail)
    assert second.step == (3 if ended == "stopped" else 2)
    list(train(t, second))
    for (name, mine), (_, theirs) in zip(straight.factors, second.factors, strict=True):
        assert torch.equal(mine, theirs), name


def test_a_caption_of_several_chunks_is_encoded_chunk_by_chunk() -> None:
    text_encoder, ids = narrow_text_encoder(), token_ids(4)
    whole = TextEncoder(text_encoder, 5)(ids.view(2, 10))
    parts = torch.cat([text_encoder(ids[::2]).last_hidden_state, text_encoder(ids[1::2]).last_hidden_state], dim=1)
    torch.testing.assert_close(whole, parts)


def base_of(unet, text_encoder) -> Base:
    return Base(name="narrow", identity="", family="like_sd_v1", unet=unet, vae=None, text_encoder=text_encoder, tokenizer=None,
                scheduler=None, resolution=64)


def test_the_file_has_kohyas_names_and_is_the_same_in_diffusers_and_here(tmp_path: Path) -> None:
    """A1111 and ComfyUI look text modules up as `lora_te_text_model_encoder_layers_N_…`."""
    recipe = replace(RECIPE, targets="locon", conv_rank=3, conv_alpha=1.5)
    t, state, text_encoder = learning(tmp_path, recipe)
    for _, factor in state.factors:
        factor.data += 0.1 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(factor.numel()))
    saved = adapter.save(t.unet, tmp_path, text_encoder)
    convert.convert_file(saved, tmp_path / "kohya.safetensors", metadata={"ss_base_model_version": "like_sd_v1"})
    lora = convert.read(tmp_path / "kohya.safetensors")
    names = re.compile(r"lora_te_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])\.")
    from safetensors import safe_open

    with safe_open(tmp_path / "kohya.safetensors", "pt") as file:
        text_keys = [key for key in file.keys() if key.startswith("lora_te_")]  # noqa: SIM118
    assert len(text_keys) == 3 * 72 and all(names.match(key) for key in text_keys)
    assert {(m.rank, m.alpha) for m in lora.modules.values()} == {(2, 1.0), (3, 1.5)}

    x, ids = torch.randn(2, 4, 8, 8), token_ids(2)
    with torch.no_grad():
        states = text_encoder(ids).last_hidden_state
        wanted = t.unet(x, 7, states).sample
    for file in (saved, tmp_path / "kohya.safetensors"):
        plain, text = learning(tmp_path / file.stem)[0].unet, narrow_text_encoder()
        plain.delete_adapters(["default"])
        pipe = StableDiffusionPipeline(AutoencoderKL(), text, None, plain, None, None, None, requires_safety_checker=False)
        pipe.load_lora_weights(str(file))
        with torch.no_grad():
            torch.testing.assert_close(pipe.text_encoder(ids).last_hidden_state, states, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(pipe.unet(x, 7, states).sample, wanted, rtol=1e-4, atol=1e-5)
    unet = learning(tmp_path / "mine")[0].unet
    unet.delete_adapters(["default"])
    base = base_of(unet, narrow_text_encoder())
    read_lora(tmp_path / "kohya.safetensors").attach(base)
    with torch.no_grad():
        torch.testing.assert_close(base.text_encoder(ids).last_hidden_state, states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(base.unet(x, 7, states).sample, wanted, rtol=1e-4, atol=1e-5)
        adapter.set_text_scale(base.text_encoder, 0)
        torch.testing.assert_close(base.text_encoder(ids).last_hidden_state, narrow_text_encoder()(ids).last_hidden_state)


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_skipped_layers_are_what_web_uis_read(skip: int) -> None:
    """hidden_states[-n] through the final norm: A1111's `CLIP_stop_at_last_layers`, kohya's `clip_skip`."""
    whole, ids = narrow_text_encoder(), token_ids()
    theirs = whole.final_layer_norm(whole(ids, output_hidden_states=True).hidden_states[-skip])
    base = base_of(None, narrow_text_encoder())
    base.skip_layers(skip)
    torch.testing.assert_close(base.text_encoder(ids).last_hidden_state, theirs)
    with pytest.raises(UsageError, match="--clip-skip 13: the base's text encoder has 1"):
        base.skip_layers(13)


def test_targets_by_name_are_kohyas() -> None:
    """networks/lora.py: linear layers and convolutions below modules of these classes; LoCon adds the second row's."""
    unet = UNet2DConditionModel(block_out_channels=(8, 16, 24, 24), norm_num_groups=2, cross_attention_dim=8,
                                attention_head_dim=2)
    kinds = {"kohya": ("Transformer2DModel",),
             "locon": ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")}
    for name, classes in kinds.items():
        theirs = {f"{outer}.{inner}" for outer, module in unet.named_modules() if type(module).__name__ in classes
                  for inner, child in module.named_modules() if type(child).__name__ in ("Linear", "Conv2d")}
        assert set(adapter.layers(unet, Recipe(targets=name))) == theirs
    counts = {name: len(adapter.layers(unet, Recipe(targets=name))) for name in TARGETS}
    assert counts == {"attention": 128, "attention+ff": 160, "kohya": 192, "locon": 278, "cross-attention": 64,
                      "decoder-cross-attention": 36}


def test_the_whole_program_trains_it_resumes_and_draws_with_it(tmp_path: Path, small_base: Path) -> None:
    write_drawings(tmp_path / "drawings", per_category=8, seed=1)
    common = ["--base", str(small_base), "--data", str(tmp_path / "drawings"), "--categories", "apple,star",
              "--per-category", "5", "--batch", "4", "--accumulation", "1", "--learning-rate", "1e-2", "--device", "cpu",
              "--checkpoint-every", "2", "--cache", str(tmp_path / "cache"),
              "--text-encoder", "--clip-skip", "2", "--targets", "locon"]

    def trained(name: str, steps: int, *more: str) -> Path:
        out = tmp_path / f"{name}.safetensors"
        assert main([*common, "--out", str(out), "--run", str(tmp_path / name), "--steps", str(steps), *more]) == 0
        return out

    out = trained("a", 4)
    lora = convert.read(out)
    assert len(lora.in_scope("text_encoder")) == 6  # of the base's two layers one is skipped
    assert lora.metadata["ss_clip_skip"] == "2" and lora.metadata["ss_text_encoder_lr"] == "0.01"
    assert "Clip skip to 2" in out.with_suffix(".json").read_text()
    compute = choose("cpu")
    base = load_base(Recipe(base=str(small_base), clip_skip=2), dtype=torch.float32, say=print)
    read_lora(out).attach(base)
    sampler = Sampler(base, compute, steps=2)
    alone = [sampler(["a scribble of apple"], [1], scale=scale) for scale in (0.0, 1.0)]
    both = sampler(["a scribble of apple"] * 2, [1, 1], scale=[0.0, 1.0])
    for one, of_both in zip(alone, both, strict=True):
        assert np.abs(one[0].astype(int) - of_both.astype(int)).max() <= 1
    assert not np.array_equal(alone[0], alone[1])

    examples = [Drawing(bitmap=bytes(range(256)) * 3 + bytes(16), category="apple", caption="a scribble of apple", source="a")]
    sizes = {"side": 64, "seed": 0, "noises": 2, "batch": 2}
    with_lora = HeldOutLoss(base, compute, **sizes)(examples, [0.0, 1.0], cache=tmp_path / "cache", say=print)
    plain = load_base(Recipe(base=str(small_base), clip_skip=2), dtype=torch.float32, say=print)
    adapter.attach(plain.unet, Recipe())  # its up factors are zero
    without = HeldOutLoss(plain, compute, **sizes)(examples, [1.0], cache=tmp_path / "cache", say=print)
    assert with_lora[0, 0] == pytest.approx(without[0, 0], rel=1e-5)
    assert with_lora[0, 1] != pytest.approx(without[0, 0], rel=1e-3)
