"""A batch may mix scales: each picture equals the same one drawn alone, scale 0 is the base, seeds determine the noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convert import convert_bytes, convert_file
from convert.errors import JobError, UsageError
from trainer.base.load import load_base
from trainer.lora.lora_file import read_lora, trained_by
from trainer.recipe import Recipe
from trainer.sample.__main__ import main as sample
from trainer.sample.sampler import Sampler
from trainer.training.devices import choose


def sampler(recipe: Recipe, lora: Path | None) -> Sampler:
    base = load_base(recipe, dtype=torch.float32, say=print)
    if lora:
        read_lora(lora).attach(base)
    return Sampler(base, choose("cpu"), steps=2)


def test_pictures_are_those_of_diffusers_pipeline(recipe: Recipe, lora: Path) -> None:
    """The same prompts, noise, scheduler, steps and guidance through StableDiffusionPipeline, with the LoRA at a scale."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    ours = sampler(recipe, lora)
    for prompt, negative, seed, scale, guidance in (("a scribble of apple", "", 3, 0.8, 4.0), ("sun", "house", 5, 0.0, 4.0)):
        ours.guidance = guidance
        mine = ours([prompt], [seed], scale=scale, negative=negative)[0]
        base = load_base(recipe, dtype=torch.float32, say=print)
        pipe = StableDiffusionPipeline(
            base.vae, base.text_encoder, base.tokenizer, base.unet,
            DPMSolverMultistepScheduler.from_config(base.scheduler.config, use_karras_sigmas=False), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_lora_weights(read_diffusers(lora))
        theirs = pipe(prompt, negative_prompt=negative, num_inference_steps=ours.steps, guidance_scale=guidance,
                      latents=ours.noise(seed)[None], cross_attention_kwargs={"scale": scale},
                      output_type="np").images[0]  # fmt: skip
        assert near(mine, (theirs * 255).round().astype(np.uint8))


def read_diffusers(lora: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(convert_bytes(lora, to="diffusers"))


def test_seeds_and_guidance_decide_the_picture(recipe: Recipe, lora: Path) -> None:
    ours = sampler(recipe, lora)
    assert not torch.equal(ours.noise(0), ours.noise(1)) and torch.equal(ours.noise(1), ours.noise(1))
    first, other = ours(["sun", "sun"], [0, 1], scale=0.5)
    assert np.abs(first.astype(int) - other).max() > 20
    ours.guidance = 1.0
    assert np.abs(first.astype(int) - ours(["sun"], [0], scale=0.5)[0]).max() > 5


def test_batches_are_halved_for_every_kind_of_out_of_memory_error(
    recipe: Recipe, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = sampler(recipe, lora)
    whole = ours(["sun"] * 3, [0, 1, 2], scale=1.0)
    draw, sizes = Sampler._draw, []

    def small(self: Sampler, prompts: list[str], seeds: list[int], *rest: object) -> np.ndarray:
        sizes.append(len(seeds))
        if len(seeds) > fits:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")
        return draw(self, prompts, seeds, *rest)

    monkeypatch.setattr(Sampler, "_draw", small)
    fits = 1
    assert near(ours(["sun"] * 3, [0, 1, 2], scale=1.0), whole) and sizes == [3, 2, 1, 1, 1]
    fits = 0
    with pytest.raises(JobError, match="out of memory on a single picture"):
        ours(["sun"], [0], scale=1.0)


def near(a: np.ndarray, b: np.ndarray) -> bool:
    return int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1  # rounding of other batch sizes


def test_a_batch_of_scales_is_the_pictures_one_by_one(recipe: Recipe, lora: Path) -> None:
    ours, plain = sampler(recipe, lora), sampler(recipe, None)
    prompts, seeds, scales = ["a scribble of apple", "a scribble of apple", "sun"], [3, 3, 4], [0.0, 1.0, 0.5]
    mixed = ours(prompts, seeds, scale=scales)
    alone = np.concatenate([ours([p], [s], scale=k) for p, s, k in zip(prompts, seeds, scales, strict=True)])
    assert near(mixed, alone)
    assert near(mixed[:1], plain(prompts[:1], seeds[:1], scale=1.0))  # scale 0 is the base
    assert np.abs(mixed[0].astype(int) - mixed[1]).max() > 20  # and scale 1 is not
    assert near(ours(prompts, seeds, scale=1.0), ours(prompts, seeds, scale=[1.0] * 3))  # mixing left nothing behind


def test_every_form_of_a_lora_is_the_same_adapter(recipe: Recipe, lora: Path, tmp_path: Path) -> None:
    first = read_lora(lora)
    for form, name in (("diffusers", "d.safetensors"), ("peft", "folder")):
        convert_file(lora, tmp_path / name, to=form)
        assert read_lora(tmp_path / name).digest == first.digest
    convert_file(lora, tmp_path / "half.safetensors", dtype="fp16")
    assert read_lora(tmp_path / "half.safetensors").digest != first.digest
    views = (["sun"], [0])
    full, half = (sampler(recipe, path)(*views, scale=1.0) for path in (lora, tmp_path / "half.safetensors"))
    assert np.abs(full.astype(int) - half).mean() < 2


def test_a_lora_that_does_not_fit_is_one_line(recipe: Recipe, lora: Path, tmp_path: Path) -> None:
    base = load_base(recipe, dtype=torch.float32, say=print)
    base.unet = torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(4, 8, 3)})
    with pytest.raises(JobError, match=r"tiny.safetensors: does not fit the base .*give --base the model"):
        read_lora(lora).attach(base)
    with pytest.raises(JobError, match=r"^no.safetensors: there is no such file"):
        read_lora(Path("no.safetensors"))
    foreign = replace(read_lora(lora), recipe=None)
    with pytest.raises(UsageError, match="give --base and --data$"):
        trained_by(foreign, {}, needed=("base", "data"))
    assert trained_by(foreign, {"base": "x"}, needed=("base",)).base == "x"


def test_sample_draws_one_picture_or_a_grid(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from PIL import Image

    common = [str(lora), "--prompt", "a scribble of sun", "--sampling-steps", "2", "--device", "cpu"]
    assert sample([*common, "--scales", "0.5", "--out", str(tmp_path / "one.png")]) == 0
    assert sample([*common, "--scales", "0,1", "--seeds", "2", "--out", str(tmp_path / "grid.png")]) == 0
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "grid.png") as grid:
        assert one.size == (64, 64) and min(grid.size) > 2 * 256
    assert sample([*common, "--out", str(tmp_path / "one.png")]) == 2
    told = f"trainer.sample: --out {tmp_path / 'one.png'}: exists: give another name or --overwrite\n"
    assert capsys.readouterr().err == told
    assert sample([*common, "--scales", "1", "--width", "128", "--out", str(tmp_path / "wide.png")]) == 0
    with Image.open(tmp_path / "wide.png") as wide:
        assert wide.size == (128, 64)
    assert sample([*common, "--out", str(tmp_path / "n.png"), "--height", "100"]) == 2
    assert "--height 100: expected a multiple of 64" in capsys.readouterr().err
    assert sample([*common, "--out", str(tmp_path / "n.png"), "--seeds", "0"]) == 2
    capsys.readouterr()
    assert sample([*common, "--out", str(tmp_path / "no" / "n.png")]) == 2  # before anything is drawn
    assert "there is no folder" in capsys.readouterr().err


