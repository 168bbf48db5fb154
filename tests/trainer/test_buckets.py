"""Shapes, repeats and caption lengths: the contents of an epoch, and that regrouping a step changes nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from trainer.data.buckets import bucket_of, bucket_shapes, enlargement, kept_area
from trainer.data.picture import Picture
from trainer.data.records import common_shape
from trainer.encoding.encoded_set import EncodedSet, packed, unpacked
from trainer.encoding.text import BACKTRACK, split
from trainer.lora import adapter
from trainer.recipe import Recipe
from trainer.training import checkpoints
from trainer.training.devices import choose
from trainer.training.draws import EpochOrder
from trainer.training.loop import backward, train
from trainer.training.objective import choose_objective
from trainer.training.processes import Processes
from trainer.training.state import prepare

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = ((8, 8), (8, 16), (16, 8), (8, 8), (8, 16), (8, 8))
RECIPE = Recipe(batch=3, accumulation=2, rank=2, learning_rate=1e-2, caption_dropout=0.3, noise_offset=0.1, min_snr_gamma=5)


def test_the_buckets_of_512_pixels() -> None:
    shapes = bucket_shapes(512, 64, 4.0)
    assert {(512, 512), (448, 576), (576, 448), (384, 640), (640, 384), (320, 768), (256, 1024), (1024, 256)} <= set(shapes)
    assert all(h % 64 == w % 64 == 0 and h * w <= 512**2 and max(h, w) / min(h, w) <= 4 for h, w in shapes)
    assert max(w / h for h, w in bucket_shapes(512, 64, 2.0)) <= 2 and bucket_shapes(512, 64, 1.0) == ((512, 512),)


def test_a_picture_goes_into_the_bucket_that_crops_it_least() -> None:
    for width, height in ((1024, 512), (512, 768), (640, 640), (300, 1000), (1000, 301)):
        chosen = bucket_of(width, height, 512, 64, 4.0)
        assert kept_area(width, height, chosen) == max(kept_area(width, height, s) for s in bucket_shapes(512, 64, 4.0))
    assert bucket_of(1024, 512, 512, 64, 4.0) == (384, 640) or kept_area(1024, 512, bucket_of(1024, 512, 512, 64, 4.0)) > 0.83
    assert enlargement(256, 256, (512, 512)) == 2 and kept_area(1024, 512, (512, 512)) == 0.5


def test_pictures_are_drawn_in_the_most_common_training_shape() -> None:
    """Repeats count; of two equally common shapes the larger one is used."""
    def picture(size: tuple[int, int], repeats: int) -> Picture:
        return Picture(path=Path("a"), source="a", category="", captions=("",), caption="", size=size, repeats=repeats,
                       bucket_step=64)

    wide, high = picture((1000, 500), 3), picture((500, 1000), 1)
    assert common_shape([high, high, wide], 512) == wide.shape(512) == (320, 768)
    assert common_shape([picture((512, 512), 3), wide], 512) == (512, 512) == common_shape([], 512)
    assert replace(wide, only_shape=(64, 128)).shape(512) == (64, 128)


def test_an_epoch_has_each_picture_as_often_as_its_repeats() -> None:
    order = EpochOrder(3, 4, repeats=(10, 1, 2, 5))
    for epoch in range(3):
        assert Counter(order.rows(epoch).tolist()) == {0: 10, 1: 1, 2: 2, 3: 5}
    first, second = order.rows(0).tolist(), order.rows(1).tolist()
    assert len(order) == 18 and first != second and order.rows(1).tolist() == second


def test_regularisation_is_drawn_as_often_as_all_others_and_evenly() -> None:
    order = EpochOrder(0, 6, repeats=(4, 3, 1, 1, 1, 1), reg=(False, False, True, True, True, False))
    seen: Counter[int] = Counter()
    for epoch in range(3):
        rows = Counter(order.rows(epoch).tolist())
        assert (rows[0], rows[1], rows[5]) == (4, 3, 1) and rows[2] + rows[3] + rows[4] == 8
        seen += rows
    assert len(order) == 16 and [seen[row] for row in (2, 3, 4)] == [8, 8, 8]


def encoded_set() -> EncodedSet:
    """Six pictures of three shapes; captions of one, two and three chunks; masks and weights."""
    g = torch.Generator().manual_seed(1)
    mean = [torch.randn(2, 4, *shape, generator=g) for shape in SHAPES]
    std = [torch.rand(2, 4, *shape, generator=g) * 0.1 for shape in SHAPES]
    mask = [torch.rand(1, *shape, generator=g) for shape in SHAPES]
    return EncodedSet(
        mean=packed(mean), std=packed(std), shapes=SHAPES, mask=packed(mask), weight=torch.tensor([1, 0.5, 1, 1, 2, 1]),
        caption_index=torch.tensor([0, 2, 3, 4, 5, 6]), captions=torch.tensor([0, 1, 2, 0, 1, 2, 0]),
        caption_count=torch.tensor([2, 1, 1, 1, 1, 1]), embeddings=torch.randn(7, 5, 8, generator=g),
        first_chunk=torch.tensor([0, 1, 3, 6]), chunks=torch.tensor([1, 2, 3, 1]), repeats=(3, 1, 1, 2, 1, 1))


def training(run: Path, processes: Processes | None = None, total: int = 6):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, cross_attention_dim=8,
                                attention_head_dim=2).eval().requires_grad_(False)
    compute = choose("cpu")
    return prepare(recipe=RECIPE, unet=unet, factors=adapter.attach(unet, RECIPE), total=total, checkpoint_every=2,
                   encoded=encoded_set(), held_out=encoded_set(), processes=processes or Processes(), compute=compute, run=run,
                   objective=choose_objective(RECIPE, DDPMScheduler(beta_schedule="scaled_linear"), compute.device))


def test_packing_is_undone() -> None:
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 4, *shape, generator=g) for shape in SHAPES]
    stored = packed(tensors)
    assert stored.shape == (6, 2, 4, 1, 128)
    assert all(torch.equal(unpacked(row, tensor.shape[-2:]), tensor) for row, tensor in zip(stored, tensors, strict=True))


def test_a_step_of_several_shapes_is_the_mean_over_its_pictures(tmp_path: Path) -> None:
    """Each picture alone, through the plain UNet, against the step's gradient and loss."""
    t, state = training(tmp_path)
    draw, encoded = t.draw(1), t.encoded
    assert len({SHAPES[p] for p in draw.picture.tolist()}) > 1
    torch.manual_seed(1)
    for factor in state.parameters:  # B is zero at the start, and A then has no gradient
        factor.data += 0.05 * torch.randn_like(factor)
    backward(t, state, draw)
    ours, loss = state.gradient.clone(), float(state.loss_and_stop[0])
    captions = [[0, 1], [2], [0], [1], [2], [0]]
    rows = {0: [0], 1: [1, 2], 2: [3, 4, 5], 3: [6]}
    total = torch.zeros(())
    for k, picture in enumerate(draw.picture.tolist()):
        h, w = SHAPES[picture]
        view, step = int(draw.view[k]), draw.timestep[k : k + 1]

        def take(tensor: torch.Tensor, h: int = h, w: int = w) -> torch.Tensor:
            return tensor.reshape(4, -1)[:, : h * w].reshape(1, 4, h, w)

        eps, mean, std = take(draw.eps[k]), take(encoded.mean[picture, view]), take(encoded.std[picture, view])
        x_0 = mean + std * take(draw.posterior[k])
        options = captions[picture]
        caption = 3 if draw.dropped[k] else options[int(draw.choice[k] * len(options))]
        embedding = torch.cat([encoded.embeddings[row] for row in rows[caption]])[None]
        alpha_bar = t.objective.schedule.alphas_cumprod[step]
        noisy = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
        mask = encoded.mask[picture].flatten()[: h * w].view(1, 1, h, w)
        mask = mask.flip(-1) if view else mask
        error = ((t.unet(noisy, step, embedding).sample - eps).square() * mask * encoded.weight[picture]).mean()
        snr = alpha_bar / (1 - alpha_bar)
        total = total + error * (snr.clamp(max=5) / snr).squeeze() / len(draw)
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(total, state.parameters)])
    assert math.isclose(loss, total.item(), rel_tol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-6)


def test_the_most_common_micro_batches_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pictures they have; the same ones on every machine that resumes the run."""
    monkeypatch.setattr("trainer.training.state.MOST_SHAPES", 3)
    t, state = training(tmp_path)
    counts: Counter[tuple] = Counter()
    for step in range(t.total):
        draw = t.draw(step)
        counts.update(part.kind for part in draw.micro_batches(t.encoded.alike(draw.picture, draw.dropped, draw.choice), 2))
    assert len(counts) > 3 and {number for number, _, _ in counts} == {1, 2}
    seen: Counter[str] = Counter()

    class Recording:
        dtype = torch.float32

        def __call__(self, x, *rest, **named):
            seen["compiled"] += 1
            return t.unet(x, *rest, **named)

    t, state = replace(t, forward=Recording()), state
    state.micro_batch = 2
    for step in range(t.total):
        backward(t, state, t.draw(step))
    assert seen["compiled"] == sum(number for _, number in counts.most_common(3)) < sum(counts.values())
    assert t.common_kinds(2) == replace(t, forward=t.unet).common_kinds(2)
    assert not replace(t, least_passes=max(counts.values()) + 1).common_kinds(2)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_of_one_shape_change_nothing(tmp_path: Path, size: int) -> None:
    t, state = training(tmp_path)
    draw = t.draw(0)
    alike = t.encoded.alike(draw.picture, draw.dropped, draw.choice)
    parts = list(draw.micro_batches(alike, size))
    assert sorted(p for part in parts for p in part.picture.tolist()) == sorted(draw.picture.tolist())
    for part in parts:
        assert len(part) <= size and {SHAPES[p] for p in part.picture.tolist()} == {part.shape}
    backward(t, state, draw)
    whole = state.gradient.clone()
    state.micro_batch = size
    backward(t, state, draw)
    torch.testing.assert_close(state.gradient, whole, rtol=1e-3, atol=1e-6)


def test_processes_compute_the_same_as_one(tmp_path: Path) -> None:
    t, state = training(tmp_path)
    draw = t.draw(2)
    backward(t, state, draw)
    parts = []
    for rank in range(2):
        alone, other = training(tmp_path)

        class Half(Processes):
            def all_reduce_sum(self, flat: torch.Tensor) -> None:
                pass

        backward(replace(alone, processes=Half(rank=rank, count=2)), other, draw)
        parts.append(other.gradient.clone())
    torch.testing.assert_close(parts[0] + parts[1], state.gradient, rtol=1e-3, atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    t, state = training(tmp_path / "whole")
    steps = list(train(t, state))
    assert state.step == 6 and all(step.held_out is None or math.isfinite(step.held_out) for step in steps)
    cut, first = training(tmp_path / "cut", total=6)
    for step in train(cut, first):
        if step.done == 3:  # as kill -9 would: the newest checkpoint is of step 2
            break
    again, second = training(tmp_path / "cut")
    assert checkpoints.restore(tmp_path / "cut" / "checkpoints", second, {}, pytest.fail) and second.step == 2
    for _ in train(again, second):
        pass
    assert all(torch.equal(a, b) for a, b in zip(state.parameters, second.parameters, strict=True))


def test_long_captions_break_as_the_web_ui_breaks_them() -> None:
    """AUTOMATIC1111 v1.10.1: a full chunk ends at its last comma, if that is at most 20 tokens back."""
    comma, room = 267, 75
    plain = list(range(1000, 1200))
    assert [len(part) for part in split(plain, room, comma)] == [75, 75, 50]
    near = [*plain[:70], comma, *plain[70:100]]
    assert split(near, room, comma) == [near[:71], near[71:]]
    at_the_limit = [*plain[: room - BACKTRACK], comma, *plain[100:140]]
    assert len(split(at_the_limit, room, comma)[0]) == room - BACKTRACK + 1
    far = [*plain[: room - BACKTRACK - 1], comma, *plain[100:140]]
    assert len(split(far, room, comma)[0]) == room
    assert split([*plain[:75], comma, 5], room, comma) == [plain[:75], [comma, 5]]
    assert split([], room, comma) == [[]] and split(plain[:75], room, comma) == [plain[:75]]
    assert [token for part in split(near * 3, room, comma) for token in part] == near * 3
