"""One step is the library's step; slices, processes and stops do not change a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from convert.errors import JobError, UsageError
from trainer.encoding.encoded_set import EncodedSet
from trainer.lora import adapter
from trainer.recipe import Recipe
from trainer.training import checkpoints
from trainer.training.devices import choose
from trainer.training.draws import draw_held_out, draw_step
from trainer.training.loop import Training, _gradients, learning_rate, train
from trainer.training.metrics import check_tracker
from trainer.training.objective import Objective
from trainer.training.processes import Processes

pytestmark = pytest.mark.usefixtures("one_thread")


def narrow_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, cross_attention_dim=8,
                                attention_head_dim=2)
    return unet.eval().requires_grad_(False)


def encoded_set(count: int = 10) -> EncodedSet:
    g = torch.Generator().manual_seed(1)
    return EncodedSet(mean=torch.randn(count, 2, 4, 8, 8, generator=g), std=torch.rand(count, 2, 4, 8, 8, generator=g) * 0.1,
                      caption_index=torch.arange(count) % 3, embeddings=torch.randn(3, 5, 8, generator=g))


def training(run: Path, recipe: Recipe, *, total: int = 4, unet_seed: int = 0, every: int = 2, **more) -> Training:
    unet = narrow_unet(unet_seed)
    factors = adapter.attach(unet, recipe)
    compute = choose("cpu")
    return Training(recipe=recipe, unet=unet, factors=factors, encoded=encoded_set(), held_out=encoded_set(3),
                    objective=Objective(recipe, DDPMScheduler(beta_schedule="scaled_linear"), compute.device),
                    compute=compute, run=run, total=total, checkpoint_every=every,
                    **({"processes": Processes()} | more))


RECIPE = Recipe(batch=2, accumulation=2, rank=2, learning_rate=1e-2)


def test_an_epoch_visits_every_picture_once_and_draws_depend_on_the_step_alone() -> None:
    draws = [draw_step(RECIPE, k, pictures=10, views=2, latent=(4, 8, 8), timesteps=1000) for k in range(6)]
    assert [len(d) for d in draws] == [4, 4, 2, 4, 4, 2]
    for epoch in (draws[:3], draws[3:]):
        assert sorted(torch.cat([d.picture for d in epoch]).tolist()) == list(range(10))
    again = draw_step(RECIPE, 4, pictures=10, views=2, latent=(4, 8, 8), timesteps=1000)
    assert torch.equal(again.eps, draws[4].eps) and torch.equal(again.timestep, draws[4].timestep)
    assert not torch.equal(draws[0].eps, draws[1].eps)


def test_caption_dropout_leaves_out_its_share_and_changes_no_other_draw() -> None:
    sizes = {"pictures": 3000, "views": 2, "latent": (4, 2, 2), "timesteps": 1000}
    plain, dropping = (draw_step(Recipe(batch=3000, accumulation=1, caption_dropout=p), 0, **sizes) for p in (0.0, 0.25))
    assert not plain.dropped.any()
    assert 0.2 < dropping.dropped.float().mean() < 0.3
    assert torch.equal(plain.eps, dropping.eps) and torch.equal(plain.timestep, dropping.timestep)


def test_loss_is_the_diffusers_recipes() -> None:
    """As train_text_to_image_lora.py computes it: scheduler.add_noise, the UNet, mean squared error."""
    encoded, unet = encoded_set(), narrow_unet()
    for schedule, gamma in (("base", 0.0), ("squaredcos_cap_v2", 5.0)):
        recipe = Recipe(noise_schedule=schedule, min_snr_gamma=gamma)
        scheduler = DDPMScheduler(beta_schedule="scaled_linear" if schedule == "base" else schedule)
        objective = Objective(recipe, DDPMScheduler(beta_schedule="scaled_linear"), torch.device("cpu"))
        draw = draw_step(recipe, 0, pictures=10, views=2, latent=(4, 8, 8), timesteps=1000)
        x_0 = encoded.mean[draw.picture, draw.view] + encoded.std[draw.picture, draw.view] * draw.posterior
        noisy = scheduler.add_noise(x_0, draw.eps, draw.timestep)
        predicted = unet(noisy, draw.timestep, encoded.embeddings[encoded.caption_index[draw.picture]]).sample
        theirs = (predicted - draw.eps).square().mean(dim=(1, 2, 3))
        if gamma:
            from diffusers.training_utils import compute_snr

            snr = compute_snr(scheduler, draw.timestep)
            theirs = theirs * torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0] / snr
        torch.testing.assert_close(objective.loss(unet, encoded, draw), theirs, rtol=1e-4, atol=1e-5)


def test_v_prediction_is_the_schedulers_velocity() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    objective, encoded = Objective(Recipe(), scheduler, torch.device("cpu")), encoded_set()
    draw = draw_step(Recipe(), 0, pictures=10, views=2, latent=(4, 8, 8), timesteps=1000)
    x_0 = encoded.mean[draw.picture, draw.view] + encoded.std[draw.picture, draw.view] * draw.posterior
    unet = narrow_unet()
    predicted = unet(scheduler.add_noise(x_0, draw.eps, draw.timestep), draw.timestep,
                     encoded.embeddings[encoded.caption_index[draw.picture]]).sample
    theirs = (predicted - scheduler.get_velocity(x_0, draw.eps, draw.timestep)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(objective.loss(unet, encoded, draw), theirs, rtol=1e-4, atol=1e-5)


def test_learning_rate_is_diffusers_cosine() -> None:
    from diffusers.optimization import get_cosine_schedule_with_warmup

    recipe = Recipe(warmup=3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 20)
    for step in range(20):
        assert math.isclose(learning_rate(recipe, step, 20), schedule.get_last_lr()[0], rel_tol=1e-9, abs_tol=1e-15)
        optimizer.step()
        schedule.step()


def test_the_adapter_starts_as_the_base_and_has_sd15s_modules(tmp_path: Path) -> None:
    t = training(tmp_path, RECIPE)
    assert len(t.factors) == 256
    assert all(p.dtype == torch.float32 for p in t.parameters)
    up = [p for name, p in t.factors if ".lora_B." in name]
    down = torch.cat([p.flatten() for name, p in t.factors if ".lora_A." in name])
    assert all(not p.any() for p in up)
    assert abs(down.std().item() * RECIPE.rank - 1) < 0.05
    x, e = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8)
    torch.testing.assert_close(t.unet(x, 5, e).sample, narrow_unet()(x, 5, e).sample, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="--targets"):
        adapter.attach(narrow_unet(), Recipe(targets="nothing"))


def test_micro_batches_and_processes_do_not_change_the_gradient(tmp_path: Path) -> None:
    draw = draw_step(RECIPE, 0, pictures=10, views=2, latent=(4, 8, 8), timesteps=1000)
    whole = training(tmp_path, RECIPE, micro_batch=4)
    torch.manual_seed(3)
    start = [torch.randn_like(p) * 0.1 for p in whole.parameters]

    def gradient(t: Training) -> torch.Tensor:
        for p, value in zip(t.parameters, start, strict=True):
            p.data.copy_(value)
        _gradients(t, draw)
        return torch.cat([p.grad.flatten() for p in t.parameters])

    expected = gradient(whole)
    torch.testing.assert_close(gradient(training(tmp_path, RECIPE, micro_batch=1)), expected, rtol=1e-4, atol=1e-6)

    class Alone(Processes):  # a process whose sum with the others is taken by the test
        def sum_(self, flat):
            return None

    halves = [gradient(training(tmp_path, RECIPE, processes=Alone(rank=r, count=2))) for r in (0, 1)]
    torch.testing.assert_close(halves[0] + halves[1], expected, rtol=1e-4, atol=1e-6)


def test_stopped_and_resumed_equals_straight_through(tmp_path: Path) -> None:
    straight = training(tmp_path / "a", RECIPE, total=5)
    train(straight, None, 0)
    stopping = training(tmp_path / "b", RECIPE, total=5)
    held = stopping.objective.loss
    calls = []

    def loss(*arguments):
        calls.append(1)
        stopping.stopped = len(calls) >= 5  # in the third step
        return held(*arguments)

    stopping.objective.loss = loss
    reached = train(stopping, None, 0)
    assert 0 < reached < 5
    resumed = training(tmp_path / "b", RECIPE, total=5)
    first = checkpoints.restore(tmp_path / "b/checkpoints", resumed.factors, resumed.optimizer, resumed.scaler)
    assert first == reached
    train(resumed, None, first)
    for (name, mine), (_, theirs) in zip(straight.factors, resumed.factors, strict=True):
        assert torch.equal(mine, theirs), name


def test_only_the_newest_two_checkpoints_keep_their_optimizer(tmp_path: Path) -> None:
    train(training(tmp_path, RECIPE, total=4, every=1), None, 0)
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert [f.name for f in folders] == [f"step-00000{k}" for k in (1, 2, 3, 4)]
    assert [(f / "optimizer.safetensors").exists() for f in folders] == [False, False, True, True]
    assert all((f / "factors.safetensors").exists() for f in folders)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path: Path) -> None:
    t = training(tmp_path, RECIPE)
    t.encoded.mean[:] = float("nan")
    with pytest.raises(JobError, match="step 1"):
        train(t, None, 0)
    assert not (tmp_path / "checkpoints").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    t = training(tmp_path, RECIPE, total=2)
    train(t, None, 0)
    file = tmp_path / "checkpoints/step-000002/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(JobError, match="step-000002"):
        checkpoints.restore(tmp_path / "checkpoints", t.factors, t.optimizer, t.scaler)


def test_clipping_really_clips_and_learning_lowers_the_loss(tmp_path: Path) -> None:
    recipe = Recipe(batch=10, accumulation=1, rank=4, learning_rate=3e-3, clip_norm=1e-3)
    t = training(tmp_path, recipe)
    draw = draw_held_out(recipe, pictures=10, latent=(4, 8, 8), timesteps=1000)
    _gradients(t, draw)
    norm = torch.nn.utils.clip_grad_norm_(t.parameters, recipe.clip_norm)
    after = torch.cat([p.grad.flatten() for p in t.parameters]).norm()
    assert norm > recipe.clip_norm and after <= recipe.clip_norm * 1.001
    t = training(tmp_path, Recipe(batch=10, accumulation=1, rank=4, learning_rate=1e-2), total=12, every=100)
    _gradients(t, draw)
    first = t.told[0].item()
    train(t, None, 0)
    _gradients(t, draw)
    assert t.told[0].item() < first


def test_a_tracker_that_is_not_installed_is_named_before_the_work() -> None:
    check_tracker("")
    with pytest.raises(JobError, match="--track no_such_tracker: no_such_tracker is not installed: pip install"):
        check_tracker("no_such_tracker")
