"""The optimizers, schedules and losses equal the libraries', and each resumes bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import SchedulerType, get_scheduler

from tests.trainer.test_training import RECIPE, run_to_end, training
from trainer.presets import PRESETS, settled
from trainer.recipe import LR_SCHEDULES, OPTIMIZERS, Recipe
from trainer.training import checkpoints, low_memory, micro_batch, objective, optim
from trainer.training.loop import train
from trainer.training.noise_schedule import NoiseSchedule

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear")
SCHEDULE = NoiseSchedule(SCHEDULER.alphas_cumprod)
HAS_PRODIGY = optim.find_spec("prodigyopt") is not None
needs_prodigy = pytest.mark.skipif(not HAS_PRODIGY, reason="prodigyopt is not installed: pip install -e .")
EVERY_OPTIMIZER = [pytest.param(name, marks=needs_prodigy if name == "prodigy" else ()) for name in OPTIMIZERS]


@pytest.mark.parametrize("name", LR_SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_every_learning_rate_is_diffusers(name: str, warmup: int) -> None:
    recipe = Recipe(lr_schedule=name, lr_cycles=3, warmup=warmup)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    theirs = get_scheduler(SchedulerType("constant_with_warmup" if name == "constant" else name), optimizer,
                           num_warmup_steps=warmup, num_training_steps=20, num_cycles=3)  # fmt: skip
    for step in range(20):
        assert math.isclose(optim.choose_schedule(recipe, 20)(step), theirs.get_last_lr()[0], rel_tol=1e-9, abs_tol=1e-15)
        optimizer.step()
        theirs.step()


def test_a_share_of_warm_up_and_the_text_encoders_own_rate_and_end() -> None:
    recipe = Recipe(warmup_share=0.1, text_encoder=True, text_encoder_rate=5e-5, text_encoder_until=0.5, lr_schedule="constant")
    unet, text = optim.choose_schedules(recipe, 20)
    assert [unet(k) for k in (0, 1, 2, 19)] == [0, 5e-5, 1e-4, 1e-4]
    assert [text(k) for k in (0, 1, 2, 9, 10, 19)] == [0, 2.5e-5, 5e-5, 5e-5, 0, 0]


def test_huber_and_debiased_are_kohyas() -> None:
    """library/train_util.py's conditional_loss with huber_schedule snr; apply_debiased_estimation."""
    g = torch.Generator().manual_seed(0)
    predicted, wanted = (torch.randn(4, 4, 8, 8, generator=g) for _ in range(2))
    timestep = torch.tensor([0, 300, 700, 999])
    alphas = SCHEDULER.alphas_cumprod[timestep]
    delta = ((1 - 0.1) / (1 + ((1 - alphas) / alphas) ** 0.5) ** 2 + 0.1).view(-1, 1, 1, 1)
    theirs = 2 * delta * (torch.sqrt((predicted - wanted) ** 2 + delta**2) - delta)
    torch.testing.assert_close(objective.Huber(0.1)(SCHEDULE, predicted, wanted, timestep), theirs)
    snr = (alphas / (1 - alphas)).clamp(max=1000)
    torch.testing.assert_close(objective.Debiased("epsilon")(SCHEDULE, timestep), 1 / torch.sqrt(snr))
    torch.testing.assert_close(objective.Debiased("v_prediction")(SCHEDULE, timestep), 1 / (snr + 1))


def test_a_loss_uses_the_distance_and_weighting_that_the_recipe_names(tmp_path: Path) -> None:
    losses = {}
    for name, changed in {"l2": {}, "huber": {"loss": "huber"}, "debiased": {"debiased": True}}.items():
        t, _ = training(tmp_path / name, replace(RECIPE, **changed))
        losses[name] = t.objective.loss(t.unet, t.encoded, t.draw(0))
    draw = t.draw(0)
    torch.testing.assert_close(losses["debiased"], losses["l2"] * t.objective.weighting(t.objective.schedule, draw.timestep))
    assert (losses["huber"] < losses["l2"]).all()  # the error's tails count linearly


def test_only_timesteps_of_the_range_are_drawn_and_held_out(tmp_path: Path) -> None:
    recipe = replace(RECIPE, min_timestep=200, max_timestep=260, batch=8)
    t, _ = training(tmp_path, recipe)
    drawn = torch.cat([t.draw(step).timestep for step in range(40)])
    assert drawn.min() >= 200 and drawn.max() <= 259 and len(set(drawn.tolist())) > 40
    assert t.draw_held_out(t.encoded, 3).timestep.tolist() == [210, 230, 250]


@pytest.mark.parametrize("name", EVERY_OPTIMIZER)
def test_every_optimizer_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer=name, learning_rate=1e-2 if name == "adamw" else 1.0, warmup=1)
    t, straight = training(tmp_path / "a", recipe, total=6)
    rates = [report.learning_rate for step in train(t, straight) for report in step.reports]
    t, stopping = training(tmp_path / "b", recipe, total=6)
    for _ in train(t, stopping, lambda: stopping.step >= 3):
        pass
    t, resumed = training(tmp_path / "b", recipe, total=6)
    assert checkpoints.restore(tmp_path / "b/checkpoints", resumed, {}, pytest.fail) and 0 < resumed.step < 6
    again = [report.learning_rate for step in train(t, resumed) for report in step.reports]
    assert again == rates[-len(again):] and len(set(rates)) > 3
    for (factor, mine), (_, theirs) in zip(straight.factors, resumed.factors, strict=True):
        assert torch.equal(mine, theirs), factor


@needs_prodigy
def test_prodigy_is_the_librarys(tmp_path: Path) -> None:
    from prodigyopt import Prodigy

    recipe = replace(RECIPE, optimizer="prodigy", learning_rate=1.0, lr_schedule="constant")
    t, state = training(tmp_path, recipe, total=16, every=100)
    copies = [torch.nn.Parameter(factor.detach().clone()) for factor in state.parameters]
    theirs = Prodigy(copies, lr=1.0, weight_decay=recipe.weight_decay, use_bias_correction=True)
    for _ in train(t, state):
        for copy, factor in zip(copies, state.parameters, strict=True):
            copy.grad = factor.grad.clone()
        theirs.step()
    assert state.optimizer.param_groups[0]["d"] == theirs.param_groups[0]["d"] > 1e-6
    for mine, copy in zip(state.parameters, copies, strict=True):
        assert torch.equal(mine, copy)


def test_gradient_checkpointing_keeps_less_and_changes_no_number(tmp_path: Path) -> None:
    plain, state = training(tmp_path / "a", RECIPE)
    low, low_state = training(tmp_path / "b", RECIPE)
    assert low_memory.choose_checkpointing(low, "on", print).on
    assert 3 * micro_batch.activation_bytes(low) < micro_batch.activation_bytes(plain)
    for t, each in ((plain, state), (low, low_state)):
        run_to_end(t, each)
    for (name, mine), (_, theirs) in zip(state.factors, low_state.factors, strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(("free", "on"), [(1 << 40, False), (1 << 10, True)])
def test_gradient_checkpointing_is_on_if_memory_is_too_small(free: int, on: bool, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(low_memory, "free_bytes", lambda device: free)
    said: list[str] = []
    t, _ = training(tmp_path, RECIPE)
    found = low_memory.choose_checkpointing(t, "auto", said.append)
    assert found == (on, None if on else micro_batch.activation_bytes(t))
    assert t.unet.is_gradient_checkpointing is on and len(said) == on
    assert low_memory.choose_checkpointing(training(tmp_path, RECIPE)[0], "off", said.append) == (False, None)


def test_training_works_with_every_choice(tmp_path: Path) -> None:
    """A run with everything switched on finishes and lowers the loss."""
    recipe = replace(RECIPE, loss="huber", debiased=True, lr_schedule="cosine_with_restarts", lr_cycles=2, warmup_share=0.2,
                     min_timestep=100, max_timestep=900)
    t, state = training(tmp_path, recipe, total=10, every=100)
    before = [factor.detach().clone() for factor in state.parameters]
    run_to_end(t, state)
    assert state.step == 10 and any(not torch.equal(a, b) for a, b in zip(before, state.parameters, strict=True))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_weighting_of_the_loss_replaces_the_presets(preset: str) -> None:
    given = ({"min_snr_gamma": 3.0}, {"debiased": True})
    snr, debiased = (Recipe(**settled(preset, fields, miniature=False)) for fields in given)
    assert (snr.min_snr_gamma, snr.debiased, debiased.min_snr_gamma, debiased.debiased) == (3.0, False, 0.0, True)
