"""Encoding agrees with diffusers' own pipeline, is cached, and survives interruption, damage and half precision."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from convert.errors import JobError, UsageError
from trainer.base.load import Base, load_base
from trainer.data.records import Drawing
from trainer.encoding import encode
from trainer.encoding.encode import encode_dataset
from trainer.encoding.text import encode_captions
from trainer.encoding.vae import Posterior, picture_batch
from trainer.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(random_base: Path) -> Base:
    """The miniature's architecture with random weights."""
    return load_base(Recipe(base=str(random_base)), dtype=torch.float32, say=print)


def drawings(count: int, seed: int = 0) -> list[Drawing]:
    rng = np.random.default_rng(seed)
    words = ["apple", "star", "house"]
    return [Drawing(bitmap=(rng.random(784) > 0.8).astype(np.uint8).tobytes(), category=words[n % 3],
                    caption=f"a scribble of {words[n % 3]}", source=f"{words[n % 3]}.npy row {n}") for n in range(count)]


def encoded(examples, base, cache, said: list[str] | None = None, **recipe):
    say = (said if said is not None else []).append
    return encode_dataset(examples, base, recipe=Recipe(base=base.name, **recipe), device="cpu", cache=cache, say=say)


def same(one, other) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def shards(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*.safetensors"))


@torch.no_grad()
def test_agrees_with_the_vae_itself(base, tmp_path) -> None:
    examples = drawings(5)
    result = encoded(examples, base, tmp_path)
    assert result.mean.shape == result.std.shape == (5, 2, 4, 16, 16) and result.mean.dtype == torch.float32
    for n, example in enumerate(examples):
        x = torch.from_numpy(example.pixels(64).copy()).permute(2, 0, 1)[None] / 255.0
        x = (x - 0.5) / 0.5
        for view, picture in enumerate([x, torch.flip(x, dims=[3])]):
            posterior = base.vae.encode(picture).latent_dist
            factor = base.vae.config.scaling_factor
            torch.testing.assert_close(result.mean[n, view], posterior.mean[0] * factor, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(result.std[n, view], posterior.std[0] * factor, rtol=1e-4, atol=1e-5)
    # a sample from the stored mean and deviation equals the pipeline's own
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    drawn = posterior.sample(torch.Generator().manual_seed(3)) * factor
    torch.testing.assert_close(result.mean[4:, 1] + result.std[4:, 1] * noise, drawn, rtol=1e-4, atol=1e-5)


def test_agrees_with_the_pipelines_prompt_embeddings(base, tmp_path) -> None:
    pipeline = StableDiffusionPipeline(base.vae, base.text_encoder, base.tokenizer, base.unet, base.scheduler, None, None,
                                       requires_safety_checker=False)  # fmt: skip
    captions = ["a scribble of apple", "", "apple " * 60] + [f"star {n}" for n in range(20)]
    ours = encode_captions(captions, base, "cpu")
    theirs, _ = pipeline.encode_prompt(captions, CPU, 1, do_classifier_free_guidance=False)
    assert ours.shape == (23, 32, 96) and len(encode_captions([], base, "cpu")) == 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    examples = drawings(7)
    result = encoded(examples, base, tmp_path)
    wanted = encode_captions([example.caption for example in examples], base, "cpu")
    assert len(result.embeddings) == 4 and torch.equal(result.embeddings[result.caption_index], wanted)


def test_without_flip_there_is_one_view(base, tmp_path) -> None:
    both, one = encoded(drawings(3), base, tmp_path), encoded(drawings(3), base, tmp_path, flip=False)
    assert one.mean.shape[1] == 1 and len(one) == 3
    torch.testing.assert_close(one.mean[:, 0], both.mean[:, 0], rtol=1e-4, atol=1e-5)


def test_nothing_to_encode(base, tmp_path) -> None:
    empty = encoded([], base, tmp_path)
    assert empty.mean.shape == (0, 2, 4, 16, 16) and empty.embeddings.shape == (0, 32, 96) and len(empty) == 0
    assert not shards(tmp_path)


def test_a_picture_is_encoded_equally_in_every_batch(base, tmp_path) -> None:
    examples = drawings(19)
    whole = encoded(examples, base, tmp_path / "a")
    reverse = encoded(examples[::-1], base, tmp_path / "b")
    few = encoded(examples[5:8], base, tmp_path / "c")
    assert torch.equal(reverse.mean.flip(0), whole.mean) and torch.equal(reverse.std.flip(0), whole.std)
    assert torch.equal(few.mean, whole.mean[5:8])
    captions = [example.caption for example in examples[:3]] + ["", "apple"]
    assert torch.equal(encode_captions(captions, base, "cpu")[2:3], encode_captions(captions[2:3], base, "cpu"))


def _no_models(base: Base) -> Base:
    """The base with encoders that raise if they are run."""
    class Broken(torch.nn.Module):
        def __init__(self, config) -> None:
            super().__init__()
            self.config, self.weight = config, torch.nn.Parameter(torch.zeros(1))

    return dataclasses.replace(base, vae=Broken(base.vae.config), text_encoder=Broken(base.text_encoder.config))


def test_a_second_run_does_not_encode_again(base, tmp_path) -> None:
    said: list[str] = []
    first = encoded(drawings(10), base, tmp_path)
    again = encoded(drawings(10), _no_models(base), tmp_path, said)
    assert same(first, again) and said == ["10 of 10 pictures were encoded before"]
    twice = encoded(drawings(10) + drawings(2), _no_models(base), tmp_path)  # equal pictures are one entry
    assert torch.equal(twice.mean[10:], first.mean[:2])


def test_the_cache_key_covers_everything_that_affects_the_result(base, tmp_path) -> None:
    encoded(drawings(2), base, tmp_path)
    before = set(shards(tmp_path))
    other = dataclasses.replace(base, identity="another")
    # another base encodes pictures and captions anew, other pictures leave the captions as they are
    for changed, recipe, anew in [(other, {}, 2), (base, {"flip": False}, 1), (base, {"resolution": 128}, 1)]:
        encoded(drawings(2), changed, tmp_path, **recipe)
        assert len(set(shards(tmp_path)) - before) == anew
        before = set(shards(tmp_path))
    said: list[str] = []
    encoded(drawings(3), base, tmp_path, said)
    assert said == ["2 of 3 pictures were encoded before"]


class Regularising(Drawing):
    """A drawing with the settings of a regularisation picture."""

    repeats, reg, weight = 3, True, 0.25


def test_weights_and_repeats_come_with_the_latents(base, tmp_path) -> None:
    plain, other = drawings(2)
    both = encoded([plain, Regularising(**vars(other))], base, tmp_path)
    assert both.weight is not None and both.weight.tolist() == [1.0, 0.25]
    assert (both.repeats, both.reg) == ((1, 3), (False, True))
    alone = encoded([plain], base, tmp_path)
    assert (alone.weight, alone.repeats, alone.reg) == (None, (), ())


def test_an_interrupted_run_keeps_what_it_encoded(base, tmp_path, monkeypatch) -> None:
    examples = drawings(80)
    whole = encoded(examples, base, tmp_path / "whole")
    calls = []

    def interrupted(pictures, side):
        calls.append(len(pictures))
        if len(calls) == 10:
            raise KeyboardInterrupt
        return picture_batch(pictures, side)

    monkeypatch.setattr(encode, "picture_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoded(examples, base, tmp_path / "cut")
    monkeypatch.undo()
    assert len(shards(tmp_path / "cut")) >= 1
    said: list[str] = []
    resumed = encoded(examples, base, tmp_path / "cut", said)
    assert same(resumed, whole) and said == ["64 of 80 pictures were encoded before"]
    assert not [path for path in (tmp_path / "cut").rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "foreign", "no checksum"])
def test_a_damaged_shard_is_reported_and_rebuilt(base, tmp_path, damage) -> None:
    from safetensors.torch import load_file, save_file

    first = encoded(drawings(4), base, tmp_path)
    for path in shards(tmp_path):
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 4
        if damage == "no checksum":
            save_file(load_file(path), path)
        else:
            path.write_bytes({"bit": bytes(raw), "cut": bytes(raw[:-10]), "empty": b"", "foreign": b"<html>"}[damage])
    said: list[str] = []
    rebuilt = encoded(drawings(4), base, tmp_path, said)
    assert same(first, rebuilt) and len(said) == 2 and all("damaged" in line and "\n" not in line for line in said)
    assert same(first, encoded(drawings(4), _no_models(base), tmp_path))


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(base, tmp_path) -> None:
    (tmp_path / "encoded").write_text("a file where the folder should be")
    said: list[str] = []
    assert len(encoded(drawings(3), base, tmp_path, said)) == 3
    assert said and "not cached" in said[0]


def test_half_precision_that_overflows_falls_back(base) -> None:
    """Some fine-tunes' VAEs overflow in fp16; here the activations are scaled until this one does."""
    pictures, said = picture_batch(drawings(1), 64), []

    def posterior(of: Base, dtype: torch.dtype):
        encoder = Posterior(of, CPU, 64, views=1, say=said.append, dtype=dtype)
        encoder.batch = 1  # fp16 is slow on a CPU
        return encoder(pictures)

    mean, _ = posterior(base, torch.float16)
    torch.testing.assert_close(mean, posterior(base, torch.float32)[0], rtol=0.05, atol=0.01)
    assert not said
    loud = load_base(Recipe(base=base.name), dtype=torch.float32, say=print)
    with torch.no_grad():
        loud.vae.encoder.conv_in.weight *= 1e6
    mean, std = posterior(loud, torch.float16)
    assert len(said) == 1 and "half precision" in said[0] and std.isfinite().all()
    assert torch.equal(mean, posterior(loud, torch.float32)[0])
    assert next(loud.vae.parameters()).dtype == torch.float32


def test_a_vae_that_gives_nan_is_named(base, tmp_path) -> None:
    broken = load_base(Recipe(base=base.name), dtype=torch.float32, say=print)
    with torch.no_grad():
        broken.vae.quant_conv.weight.fill_(float("nan"))
    with pytest.raises(JobError, match="apple.npy row 0: the base's VAE gives values that are not finite"):
        encoded(drawings(2), broken, tmp_path)
    assert not shards(tmp_path / "encoded")


def test_resolution_must_fit_the_base(base, tmp_path) -> None:
    wide = load_base(Recipe(base=base.name), dtype=torch.float32, say=print)
    wide.vae.register_to_config(block_out_channels=(24, 24, 24, 48, 96))
    with pytest.raises(UsageError, match="--resolution 64: expected a multiple of 128"):
        encoded(drawings(1), wide, tmp_path)


def test_take_gathers_views_and_captions(base, tmp_path) -> None:
    result = encoded(drawings(6), base, tmp_path)
    mean, std, embeddings = result.take(torch.tensor([4, 0]), torch.tensor([1, 0]), torch.tensor([False, True]))
    assert torch.equal(mean, torch.stack([result.mean[4, 1], result.mean[0, 0]]))
    assert torch.equal(std[0], result.std[4, 1]) and torch.equal(embeddings[0], result.embeddings[1])
    assert torch.equal(embeddings[1], encode_captions([""], base, "cpu")[0])  # dropped: the empty caption's
    assert result.nbytes == 2 * 6 * 2 * 4 * 16 * 16 * 4 + 6 * 8 + 4 * 32 * 96 * 4
    assert same(result.to("cpu"), result)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(base, tmp_path, monkeypatch) -> None:
    recipe = Recipe(base=base.name)
    there = encode_dataset(drawings(6), base, recipe=recipe, device="cuda", cache=tmp_path, say=print)
    here = encoded(drawings(6), base, tmp_path)
    assert there.mean.dtype == torch.float16 and there.mean.is_cuda
    torch.testing.assert_close(there.mean.float().cpu(), here.mean, rtol=0.05, atol=0.01)
    monkeypatch.setattr(encode, "SHARE", 0.0)
    pinned = encode_dataset(drawings(6), base, recipe=recipe, device="cuda", cache=tmp_path, say=print)
    assert pinned.mean.is_pinned() and pinned.embeddings.is_cuda
    rows = torch.tensor([4, 0]), torch.tensor([1, 0]), torch.tensor([False, True])
    assert all(torch.equal(a, b) for a, b in zip(pinned.take(*rows), there.take(*rows), strict=True))


def test_the_cache_folder_may_be_deleted_at_any_time(base, tmp_path) -> None:
    first = encoded(drawings(3), base, tmp_path)
    shutil.rmtree(tmp_path / "encoded")
    assert same(first, encoded(drawings(3), base, tmp_path))


def test_a_batch_that_runs_out_of_memory_is_split(base, monkeypatch) -> None:
    pictures = picture_batch(drawings(4), 64)
    whole, _ = Posterior(base, CPU, 64, views=2, say=print)(pictures)
    small = Posterior(base, CPU, 64, views=2, say=print)
    encode, sizes = base.vae.encode, []

    def limited(x):
        sizes.append(len(x))
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(x)

    monkeypatch.setattr(base.vae, "encode", limited)
    limit = 4
    torch.testing.assert_close(small(pictures)[0], whole, rtol=1e-4, atol=1e-5)
    assert max(sizes) == small.batch * 2 and set(sizes[-4:]) == {4}
    small(pictures)
    assert set(sizes[-4:]) == {4}, "the size that fitted is kept"
    limit = 0
    with pytest.raises(JobError, match="single picture"):
        Posterior(base, CPU, 64, views=2, say=print)(pictures)
