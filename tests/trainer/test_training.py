"""A step equals the libraries' step; slices, processes and stops do not change a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from convert.errors import JobError, UsageError
from trainer.encoding.encoded_set import EncodedSet
from trainer.lora import adapter
from trainer.recipe import Recipe
from trainer.training import checkpoints
from trainer.training.devices import choose
from trainer.training.draws import EpochOrder, draw_step
from trainer.training.loop import backward, train, update
from trainer.training.metrics import Metrics, check_tracker
from trainer.training.noise_schedule import NoiseSchedule
from trainer.training.objective import choose_objective
from trainer.training.optim import choose_schedule
from trainer.training.processes import Processes
from trainer.training.state import State, Training, prepare

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULE = NoiseSchedule(DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod)


def narrow_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, cross_attention_dim=8,
                                attention_head_dim=2)
    return unet.eval().requires_grad_(False)


def encoded_set(count: int = 10) -> EncodedSet:
    g = torch.Generator().manual_seed(1)
    return EncodedSet(mean=torch.randn(count, 2, 4, 8, 8, generator=g), std=torch.rand(count, 2, 4, 8, 8, generator=g) * 0.1,
                      caption_index=torch.arange(count) % 3, embeddings=torch.randn(3, 5, 8, generator=g))


def training(run: Path, recipe: Recipe, *, total: int = 4, unet_seed: int = 0, every: int = 2, micro_batch: int = 0,
             **more) -> tuple[Training, State]:  # fmt: skip
    unet = narrow_unet(unet_seed)
    compute = choose("cpu")
    settings = {"encoded": encoded_set(), "held_out": encoded_set(3), "processes": Processes(), "compute": compute, "run": run,
                "objective": choose_objective(recipe, DDPMScheduler(beta_schedule="scaled_linear"), compute.device)}
    t, state = prepare(recipe=recipe, unet=unet, factors=adapter.attach(unet, recipe), total=total, checkpoint_every=every,
                       **(settings | more))
    state.micro_batch = micro_batch or state.micro_batch
    return t, state


def run_to_end(t: Training, state: State) -> None:
    for _ in train(t, state):
        pass


def with_loss(t: Training, loss) -> Training:
    """`t` with another `objective.loss`."""
    objective = SimpleNamespace(loss=loss, schedule=t.objective.schedule)
    return replace(t, objective=objective)


def restored(run: Path, state: State) -> int:
    """The step of the checkpoint that `state` was restored from."""
    record = checkpoints.restore(run / "checkpoints", state, {}, pytest.fail)
    assert record is not None and record["step"] == state.step
    return state.step


RECIPE = Recipe(batch=2, accumulation=2, rank=2, learning_rate=1e-2)


def test_an_epoch_visits_every_picture_once_and_draws_depend_on_the_step_alone() -> None:
    draws = [draw_step(RECIPE, k, order=EpochOrder(0, 10), views=2, latent=(4, 8, 8), schedule=SCHEDULE) for k in range(6)]
    assert [len(d) for d in draws] == [4, 4, 2, 4, 4, 2]
    for epoch in (draws[:3], draws[3:]):
        assert sorted(torch.cat([d.picture for d in epoch]).tolist()) == list(range(10))
    again = draw_step(RECIPE, 4, order=EpochOrder(0, 10), views=2, latent=(4, 8, 8), schedule=SCHEDULE)
    assert torch.equal(again.eps, draws[4].eps) and torch.equal(again.timestep, draws[4].timestep)
    assert not torch.equal(draws[0].eps, draws[1].eps)


def test_caption_dropout_leaves_out_its_share_and_changes_no_other_draw() -> None:
    sizes = {"order": EpochOrder(0, 3000), "views": 2, "latent": (4, 2, 2), "schedule": SCHEDULE}
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
        objective = choose_objective(recipe, DDPMScheduler(beta_schedule="scaled_linear"), torch.device("cpu"))
        draw = draw_step(recipe, 0, order=EpochOrder(0, 10), views=2, latent=(4, 8, 8), schedule=SCHEDULE)
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
    objective, encoded = choose_objective(Recipe(), scheduler, torch.device("cpu")), encoded_set()
    draw = draw_step(Recipe(), 0, order=EpochOrder(0, 10), views=2, latent=(4, 8, 8), schedule=SCHEDULE)
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
        assert math.isclose(choose_schedule(recipe, 20)(step), schedule.get_last_lr()[0], rel_tol=1e-9, abs_tol=1e-15)
        optimizer.step()
        schedule.step()


def test_the_adapter_starts_as_the_base_and_has_sd15s_modules(tmp_path: Path) -> None:
    t, state = training(tmp_path, RECIPE)
    assert len(state.factors) == 256
    assert all(p.dtype == torch.float32 for p in state.parameters)
    up = [p for name, p in state.factors if ".lora_B." in name]
    down = torch.cat([p.flatten() for name, p in state.factors if ".lora_A." in name])
    assert all(not p.any() for p in up)
    assert abs(down.std().item() * RECIPE.rank - 1) < 0.05
    x, e = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8)
    torch.testing.assert_close(t.unet(x, 5, e).sample, narrow_unet()(x, 5, e).sample, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="--targets"):
        adapter.attach(narrow_unet(), Recipe(targets="nothing"))


@pytest.mark.parametrize("changed", [{}, {"clip_norm": 0.02}, {"weight_decay": 3.0}, {"warmup": 3}, {"noise_offset": 0.5},
                                     {"min_snr_gamma": 5.0}], ids=str)  # fmt: skip
def test_five_steps_are_those_of_plain_torch_and_diffusers(changed: dict[str, float], tmp_path: Path) -> None:
    """AdamW, get_cosine_schedule_with_warmup, clip_grad_norm_, add_noise, on peft's own forward: equal factors."""
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import compute_snr

    recipe = replace(Recipe(batch=2, accumulation=2, rank=2, learning_rate=1e-2), **changed)
    t, state = training(tmp_path, recipe, total=8, every=100)
    for _, step in zip(range(5), train(t, state)):
        assert step.done <= 5
    unet = narrow_unet()
    factors = adapter.attach(unet, recipe)
    parameters = [p for _, p in factors]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup, 8)
    scheduler, encoded, norms = DDPMScheduler(beta_schedule="scaled_linear"), encoded_set(), []
    for k in range(5):
        draw = t.draw(k)
        x_0 = encoded.mean[draw.picture, draw.view] + encoded.std[draw.picture, draw.view] * draw.posterior
        noisy = scheduler.add_noise(x_0, draw.eps, draw.timestep)
        predicted = unet(noisy, draw.timestep, encoded.embeddings[encoded.caption_index[draw.picture]]).sample
        loss = (predicted - draw.eps).square().mean(dim=(1, 2, 3))
        if recipe.min_snr_gamma:
            snr = compute_snr(scheduler, draw.timestep)
            loss = loss * snr.clamp(max=recipe.min_snr_gamma) / snr
        loss.mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert min(norms) > 0.02  # the clipped case really clips
    for (name, mine), (_, theirs) in zip(state.factors, factors, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_noise_offset_shifts_whole_channels() -> None:
    sizes = {"order": EpochOrder(0, 400), "views": 1, "latent": (4, 8, 8), "schedule": SCHEDULE}
    plain, offset = (draw_step(Recipe(batch=400, accumulation=1, noise_offset=o), 0, **sizes) for o in (0.0, 0.5))
    shift = offset.eps - plain.eps
    assert (shift.std(dim=(2, 3)) < 1e-5).all() and abs(shift.mean(dim=(2, 3)).std().item() - 0.5) < 0.03


def test_min_snr_for_v_divides_by_snr_plus_one() -> None:
    """Hang et al. 2023, section 3.4; as diffusers' training script computes it."""
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    objective = choose_objective(Recipe(min_snr_gamma=5.0), scheduler, torch.device("cpu"))
    timestep = torch.tensor([3, 200, 500, 999])
    snr = compute_snr(scheduler, timestep)
    torch.testing.assert_close(objective.weighting(objective.schedule, timestep), snr.clamp(max=5) / (snr + 1))


def test_micro_batches_and_processes_do_not_change_the_gradient(tmp_path: Path) -> None:
    draw = draw_step(RECIPE, 0, order=EpochOrder(0, 10), views=2, latent=(4, 8, 8), schedule=SCHEDULE)
    start: list[torch.Tensor] = []

    def gradient(t: Training, state: State) -> torch.Tensor:
        for p, value in zip(state.parameters, start, strict=True):
            p.data.copy_(value)
        backward(t, state, draw)
        return torch.cat([p.grad.flatten() for p in state.parameters])

    t, state = training(tmp_path, RECIPE, micro_batch=4)
    torch.manual_seed(3)
    start += [torch.randn_like(p) * 0.1 for p in state.parameters]
    expected = gradient(t, state)
    torch.testing.assert_close(gradient(*training(tmp_path, RECIPE, micro_batch=1)), expected, rtol=1e-4, atol=1e-6)

    class Alone(Processes):  # a process whose gradients the test sums
        def all_reduce_sum(self, flat):
            return None

    halves = [gradient(*training(tmp_path, RECIPE, processes=Alone(rank=r, count=2))) for r in (0, 1)]
    torch.testing.assert_close(halves[0] + halves[1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("asked_after", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, asked_after: int) -> None:
    """Stopped in a step that is due for a checkpoint, and in one that is not."""
    t, straight = training(tmp_path / "a", RECIPE, total=5)
    run_to_end(t, straight)
    t, stopping = training(tmp_path / "b", RECIPE, total=5)
    steps = list(train(t, stopping, lambda: stopping.step >= asked_after))
    assert steps[-1].stopped and steps[-1].saved and steps[-1].done == asked_after + (asked_after != stopping.step)
    assert steps[-1].held_out is None or steps[-1].done % 2 == 0  # a stop does not compute a loss that is not due
    assert [report.step for step in steps for report in step.reports] == list(range(1, stopping.step + 1))
    t, resumed = training(tmp_path / "b", RECIPE, total=5)
    assert restored(tmp_path / "b", resumed) == stopping.step
    run_to_end(t, resumed)
    for (name, mine), (_, theirs) in zip(straight.factors, resumed.factors, strict=True):
        assert torch.equal(mine, theirs), name


def test_the_held_out_loss_is_of_the_held_out_pictures(tmp_path: Path) -> None:
    t, state = training(tmp_path, RECIPE, total=2)
    last = list(train(t, state))[-1]
    draw = t.draw_held_out(t.held_out, 3)
    with torch.no_grad():
        expected = t.objective.loss(t.unet, encoded_set(3), draw).mean().item()
    assert last.held_out == pytest.approx(expected, rel=1e-4)
    assert last.held_out != pytest.approx(t.objective.loss(t.unet, t.encoded, draw).mean().item(), rel=1e-3)


def test_loss_scaling_is_saved_and_restored(tmp_path: Path) -> None:
    """Before its first accepted step too: an fp16 run whose first steps overflow has no optimizer state yet."""
    t, state = training(tmp_path, RECIPE)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=512.0, enabled=True)
    state.step = 1
    checkpoints.save(tmp_path / "checkpoints", state, {}, "cpu")
    _, other = training(tmp_path, RECIPE)
    other.scaler = torch.amp.GradScaler("cpu", enabled=True)
    assert restored(tmp_path, other) == 1
    assert other.scaler.get_scale() == 512.0 and not other.optimizer.state


def test_only_the_newest_two_checkpoints_keep_their_optimizer(tmp_path: Path) -> None:
    run_to_end(*training(tmp_path, RECIPE, total=4, every=1))
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert [f.name for f in folders] == [f"step-00000{k}" for k in (1, 2, 3, 4)]
    assert [(f / "optimizer.safetensors").exists() for f in folders] == [False, False, True, True]
    assert all((f / "factors.safetensors").exists() for f in folders)


def test_a_full_disk_is_named_and_leaves_no_part(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    t, state = training(tmp_path, RECIPE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(JobError, match="step-000002: cannot be written .* free some disk space"):
            run_to_end(t, state)
        metrics = Metrics(tmp_path / "metrics.jsonl", first=0, total=100)
        with pytest.raises(JobError, match="metrics.jsonl: cannot be written .*File too large"), metrics:
            for step in range(100):
                metrics.held_out(step, 0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "checkpoints").iterdir())
    run_to_end(*training(tmp_path, RECIPE))


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path: Path) -> None:
    t, state = training(tmp_path, RECIPE)
    t.encoded.mean[:] = float("nan")
    with pytest.raises(JobError, match="step 1"):
        run_to_end(t, state)
    assert not (tmp_path / "checkpoints").exists()


def test_a_held_out_loss_that_is_not_finite_stops_the_run_unsaved(tmp_path: Path) -> None:
    t, state = training(tmp_path, RECIPE)
    t.held_out.mean[:] = float("nan")
    with pytest.raises(JobError, match="step 2: the held-out loss is nan"):
        run_to_end(t, state)
    assert not (tmp_path / "checkpoints").exists()


def test_factors_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    t, state = training(tmp_path, RECIPE, total=4, every=2)
    with pytest.raises(JobError, match="step 2: the LoRA's numbers are not all finite"):
        for step in train(t, state):
            if step.done == 1:
                state.optimizer.step = lambda: state.parameters[0].data.fill_(float("inf"))
    assert not (tmp_path / "checkpoints").exists()


def test_learning_lowers_the_loss(tmp_path: Path) -> None:
    t, state = training(tmp_path, Recipe(batch=10, accumulation=1, rank=4, learning_rate=1e-2), total=12, every=100)
    draw = t.draw_held_out(t.encoded, 10)
    backward(t, state, draw)
    first = state.loss_and_stop[0].item()
    run_to_end(t, state)
    backward(t, state, draw)
    assert state.loss_and_stop[0].item() < first


def test_the_update_clips(tmp_path: Path) -> None:
    t, state = training(tmp_path, replace(RECIPE, clip_norm=1e-3))
    backward(t, state, t.draw(0))
    norm = state.gradient.norm().item()
    assert update(t, state, 0).item() == pytest.approx(norm) and norm > 1e-3
    assert state.gradient.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_tracker_that_is_not_installed_is_named_before_the_work() -> None:
    check_tracker("")
    with pytest.raises(JobError, match="--track no_such_tracker: no_such_tracker is not installed: pip install"):
        check_tracker("no_such_tracker")


def test_without_a_terminal_progress_is_printed_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metrics, "every", 0.0)
    t, state = training(tmp_path, RECIPE, total=3)
    with Metrics(tmp_path / "metrics.jsonl", first=0, total=3, say=print) as metrics:
        for step in train(t, state):
            for report in step.reports:
                metrics.report(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"written to {tmp_path / 'metrics.jsonl'}")
    assert [line.split(",")[0] for line in lines[1:]] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert all("loss" in line and "left" in line for line in lines[1:])
