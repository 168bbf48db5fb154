"""The fused forward equals peft's, the loop's shortcuts change no result, and missing features are done without."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional

from convert.errors import JobError
from trainer.cli import ATTENTION
from trainer.encoding.encoded_set import EncodedSet
from trainer.kernels import Fused, training_kernels
from trainer.kernels import compile as compiling
from trainer.kernels.attention_backend import BACKENDS, CHOICES, attention_backend, preferred
from trainer.kernels.lora_linear import _JointProduct
from trainer.lora import adapter
from trainer.recipe import Recipe
from trainer.training import checkpoints, micro_batch
from trainer.training.devices import choose
from trainer.training.draws import EpochOrder, Prefetcher, draw_step
from trainer.training.loop import backward, train
from trainer.training.metrics import Metrics, read_lines
from trainer.training.noise_schedule import NoiseSchedule
from trainer.training.objective import choose_objective
from trainer.training.processes import Processes
from trainer.training.state import State, Training, prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def make_unet(width: int = 8, dtype: torch.dtype = torch.float32, levels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    down, up = ["CrossAttnDownBlock2D"] * (levels - 1), ["CrossAttnUpBlock2D"] * (levels - 1)
    unet = UNet2DConditionModel(sample_size=16, block_out_channels=(width,) * levels, norm_num_groups=2, attention_head_dim=2,
                                cross_attention_dim=12, down_block_types=(*down, "DownBlock2D"),
                                up_block_types=("UpBlock2D", *up))  # fmt: skip
    return unet.eval().requires_grad_(False).to(dtype)


def trained_factors(unet: UNet2DConditionModel, recipe: Recipe) -> list[tuple[str, torch.nn.Parameter]]:
    """A LoRA away from its start, where B and half of the gradients are zero."""
    factors = adapter.attach(unet, recipe)
    g = torch.Generator().manual_seed(4)
    for _, factor in factors:
        factor.data.add_(torch.randn(factor.shape, generator=g) * 0.2)
    return factors


def loss_and_gradients(unet: UNet2DConditionModel, factors) -> tuple[float, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    x, e = torch.randn(3, 4, 16, 16, generator=g), torch.randn(3, 7, 12, generator=g)
    target = torch.randn(3, 4, 16, 16, generator=g)
    for _, factor in factors:
        factor.grad = None
    predicted = unet(x.to(unet.dtype), torch.tensor([3, 500, 999]), e.to(unet.dtype)).sample.float()
    loss = (predicted - target).square().mean()
    loss.backward()
    return loss.item(), torch.cat([factor.grad.flatten() for _, factor in factors])


@pytest.mark.parametrize(("width", "recipe"), [
    (8, Recipe(rank=2)),
    (48, Recipe(rank=2, alpha=3.0)),
    (8, Recipe(rank=2, targets="cross-attention")),
    (8, Recipe(rank=2, targets=r".*\.attn1\.to_(q|v)")),  # a projection without LoRA between two with one
    (8, Recipe(rank=2, targets=r".*(proj_in|conv_shortcut|conv[12]|net\.0\.proj|net\.2|attn2\.to_q)")),  # unjoined
])  # fmt: skip
def test_the_fused_forward_equals_pefts_and_is_undone(width: int, recipe: Recipe, tmp_path: Path) -> None:
    unet = make_unet(width)
    factors = trained_factors(unet, recipe)
    loss, gradients = loss_and_gradients(unet, factors)
    names = list(unet.state_dict())
    fused = Fused(unet)
    with fused:
        mine, mine_gradients = loss_and_gradients(unet, factors)
    assert mine == pytest.approx(loss, abs=1e-5)
    assert (mine_gradients - gradients).norm() < 1e-4 * gradients.norm()  # each is 3e-5 from the exact result
    after, _ = loss_and_gradients(unet, factors)
    assert after == pytest.approx(loss, abs=1e-6)
    assert list(unet.state_dict()) == names


def test_a_cpu_trains_with_pefts_own_modules_unless_it_is_to_compile() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for device, compile, fused in ((cpu, "auto", False), (cpu, "on", True), (cuda, "off", True)):
        assert isinstance(training_kernels(make_unet(), device, attention="auto", compile=compile), Fused) == fused


def test_the_attention_kernel_depends_on_the_gpu_or_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for capability, first in (((9, 0), "cudnn"), ((8, 9), "cudnn"), ((8, 0), ""), ((7, 5), "")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert preferred(cuda) == first and preferred(cuda, "efficient") == "efficient"
    assert preferred(torch.device("cpu")) == ""
    before = torch._C._get_sdp_priority_order()
    with attention_backend(cuda, "cudnn"):
        order = torch._C._get_sdp_priority_order()
        assert order[0] == int(BACKENDS["cudnn"].value) and set(order[:4]) == {int(b.value) for b in BACKENDS.values()}
    assert torch._C._get_sdp_priority_order() == before
    assert set(ATTENTION) == set(CHOICES)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_in_half_precision_as_on_a_gpu_the_fused_forward_is_as_near_to_float32_as_pefts(half: torch.dtype) -> None:
    """A GPU's path on a CPU: half-precision base, float32 factors, no autocast."""
    exact_unet = make_unet(48)
    exact, exact_gradients = loss_and_gradients(exact_unet, trained_factors(exact_unet, Recipe(rank=2)))
    unet = make_unet(48, half)
    factors = trained_factors(unet, Recipe(rank=2))
    plain, plain_gradients = loss_and_gradients(unet, factors)
    with Fused(unet):
        loss, gradients = loss_and_gradients(unet, factors)
    assert all(factor.grad.dtype == torch.float32 for _, factor in factors)
    assert loss == pytest.approx(exact, rel=5e-3)
    off, plain_off = ((g - exact_gradients).norm() / exact_gradients.norm() for g in (gradients, plain_gradients))
    assert off < 1.5 * plain_off < 0.1


def test_the_gradients_of_joined_projections_are_right_to_double_precision() -> None:
    g = torch.Generator().manual_seed(0)

    def random(*shape: int, learn: bool = True) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g).requires_grad_(learn)

    def product(x, *factors):
        return _JointProduct.apply(x, weight, bias, [0.5, 2.0], [0, 7], *factors)

    weight, bias = random(9, 3, learn=False), random(9, learn=False)  # rows 4 to 6 have no LoRA
    x, factors = random(2, 5, 3), (random(2, 3), random(1, 3), random(4, 2), random(2, 1))
    assert torch.autograd.gradcheck(product, (x, *factors))
    deltas = [scale * up @ down for scale, down, up in zip([0.5, 2.0], factors[:2], factors[2:], strict=True)]
    whole = weight + torch.cat([deltas[0], torch.zeros(3, 3, dtype=torch.float64), deltas[1]])
    torch.testing.assert_close(product(x, *factors), functional.linear(x, whole, bias))


RECIPE = Recipe(batch=2, accumulation=2, rank=2, learning_rate=1e-2)


def make_training(run: Path, *, loss=None, micro_batch: int = 0, **more) -> tuple[Training, State]:
    """loss: called instead of the objective's loss, which is its first argument."""
    unet = make_unet()
    compute, g = choose("cpu"), torch.Generator().manual_seed(1)
    encoded = EncodedSet(mean=torch.randn(10, 2, 4, 8, 8, generator=g), std=torch.rand(10, 2, 4, 8, 8, generator=g) * 0.1,
                         caption_index=torch.arange(10) % 3, embeddings=torch.randn(3, 5, 12, generator=g))
    objective = choose_objective(RECIPE, DDPMScheduler(beta_schedule="scaled_linear"), compute.device)
    if loss:
        objective = SimpleNamespace(loss=partial(loss, objective.loss), schedule=objective.schedule)
    t, state = prepare(recipe=RECIPE, unet=unet, factors=adapter.attach(unet, RECIPE), encoded=encoded, held_out=None,
                       objective=objective, compute=compute, run=run,
                       **({"total": 3, "checkpoint_every": 100, "processes": Processes()} | more))
    state.micro_batch = micro_batch or state.micro_batch
    return t, state


def test_prefetched_draws_equal_the_steps_own() -> None:
    def draw(step: int):
        schedule = NoiseSchedule(torch.ones(1000))
        return draw_step(RECIPE, step, order=EpochOrder(0, 10), views=2, latent=(4, 8, 8), schedule=schedule)

    ahead = list(Prefetcher(draw, 2, 5, pinned=False))
    assert [step for step, _ in ahead] == [2, 3, 4]
    assert all(torch.equal(made.eps, draw(step).eps) for step, made in ahead)
    assert list(Prefetcher(draw, 5, 5, pinned=False)) == []


def test_a_step_that_is_not_finite_is_named_although_it_is_read_late(tmp_path: Path) -> None:
    seen, reported = [], []

    def breaking(loss, *arguments):
        seen.append(1)
        return loss(*arguments) * (float("nan") if len(seen) > 3 else 1)

    t, state = make_training(tmp_path, total=9, loss=breaking)
    with pytest.raises(JobError, match="step 4: the loss is nan"):
        for step in train(t, state):
            reported += [report.step for report in step.reports]
    assert reported == [1, 2, 3]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("MPS backend out of memory"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_memory_that_runs_out_halves_the_micro_batch_and_keeps_the_gradient(error: Exception, tmp_path: Path) -> None:
    most = 1

    def short(loss, unet, encoded, some):
        if len(some) > most:
            raise error
        return loss(unet, encoded, some)

    t, state = make_training(tmp_path, micro_batch=4, loss=short)
    calm, calm_state = make_training(tmp_path, micro_batch=4)
    for training, its in ((t, state), (calm, calm_state)):
        backward(training, its, t.draw(0))
    assert state.micro_batch == 1
    torch.testing.assert_close(state.reduce_buffer, calm_state.reduce_buffer, rtol=1e-4, atol=1e-6)
    state.step = 2
    list(train(t, state))  # the last step, and its checkpoint: the next command starts with the halved number
    saved = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert checkpoints.read(saved).record["micro_batch"] == 1
    most = 0
    with pytest.raises(JobError, match="out of memory on a micro-batch of 1"):
        backward(t, state, t.draw(0))


def test_another_runtime_error_is_not_treated_as_out_of_memory(tmp_path: Path) -> None:
    def broken(loss, *arguments):
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        list(train(*make_training(tmp_path, loss=broken)))


def test_the_micro_batch_is_what_fits_into_memory_and_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t, _ = make_training(tmp_path)
    each = micro_batch.activation_bytes(t)
    assert each > 16 * 16 * 8 * 4
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 3.5 * each / micro_batch.SHARE)
    assert micro_batch.choose_micro_batch(t, 0, measured=7 * each) == 1  # taken as given, not measured again
    assert micro_batch.choose_micro_batch(t, 0) == 2  # three fit, but two parts of two are as few and equal
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 1e12)
    record = {"micro_batch": 2, "device": "cpu"}
    assert micro_batch.choose_micro_batch(t, 0, record) == 2
    assert micro_batch.choose_micro_batch(t, 0, record | {"device": "another"}) == 4
    assert micro_batch.choose_micro_batch(t, 3, record) == 3
    assert micro_batch.choose_micro_batch(t, 64) == 4  # no larger than a step, or it would never be reached
    assert [micro_batch.equal_parts(32, limit) for limit in (0, 1, 7, 15, 16, 31, 32, 99)] == [1, 1, 4, 8, 16, 16, 32, 32]
    assert [micro_batch.equal_parts(31, limit) for limit in (5, 16, 31)] == [5, 16, 31]  # a prime number has no equal parts


def test_only_full_micro_batches_are_compiled(tmp_path: Path) -> None:
    class Recording:
        dtype, sizes = torch.float32, []  # noqa: RUF012

        def __call__(self, x, *arguments, **named):
            self.sizes.append(len(x))
            return t.unet(x, *arguments, **named)

    recording = Recording()
    t, state = make_training(tmp_path, forward=recording)
    calm, calm_state = make_training(tmp_path)
    assert state.micro_batch == 4
    for step in range(3):  # 10 pictures: an epoch has steps of 4, 4 and 2
        backward(t, state, t.draw(step))
        backward(calm, calm_state, t.draw(step))
        torch.testing.assert_close(state.reduce_buffer, calm_state.reduce_buffer)
    assert recording.sizes == [4, 4]


def test_a_set_smaller_than_a_step_is_one_compiled_micro_batch(tmp_path: Path) -> None:
    sizes: list[int] = []

    def forward(x, *arguments, **named):
        sizes.append(len(x))
        return t.unet(x, *arguments, **named)

    forward.dtype = torch.float32
    recipe = Recipe(batch=8, accumulation=4, rank=2)
    small, _ = make_training(tmp_path)
    factors = [(name, p) for name, p in small.unet.named_parameters() if "lora" in name]
    t, state = prepare(recipe=recipe, unet=small.unet, factors=factors, encoded=small.encoded, held_out=None,
                       objective=small.objective, compute=small.compute, run=tmp_path,
                       total=3, checkpoint_every=100, processes=Processes(), forward=forward)
    state.micro_batch = micro_batch.choose_micro_batch(t, 0)
    backward(t, state, t.draw(0))
    assert state.micro_batch == 10 and sizes == [10]


def test_what_cannot_be_compiled_runs_uncompiled_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, said = make_unet(), []
    x, e = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 12)
    expected = unet(x, 5, e).sample
    cpu = torch.device("cpu")
    assert not compiling.Compiled(unet, cpu, "auto", tmp_path, said.append).blocks and not said
    monkeypatch.setattr(compiling, "missing", lambda device: "no C++ compiler was found")
    lacking = compiling.Compiled(unet, cpu, "on", tmp_path, said.append)
    assert torch.equal(lacking(x, 5, e).sample, expected)
    assert said == ["not compiled: no C++ compiler was found; training continues without it, slower"]

    def broken(graph, inputs):
        raise RuntimeError("this backend is broken")

    compile = torch.compile
    monkeypatch.setattr(compiling, "missing", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda f, dynamic, options: compile(f, backend=broken, dynamic=dynamic))
    failing = compiling.Compiled(unet, cpu, "on", tmp_path, said.append)
    assert failing.blocks and said[1].startswith("compiling")
    assert torch.equal(failing(x, 5, e).sample, expected)
    assert len(said) == 3 and "this backend is broken" in said[2] and not failing.blocks


@pytest.mark.parametrize(("error", "falls_back"), [(RuntimeError("no kernel image"), True),
                                                   (torch.OutOfMemoryError("full"), False)])  # fmt: skip
def test_after_a_failed_first_launch_nothing_runs_compiled(error: Exception, falls_back: bool, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Of memory that runs out, the micro-batch is halved instead."""
    unet, said = make_unet(), []
    x, e = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 12)

    def failing(*arguments, **named):
        raise error

    monkeypatch.setattr(compiling, "missing", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda f, **options: failing)
    compiled = compiling.Compiled(unet, torch.device("cpu"), "on", tmp_path, said.append)
    if falls_back:
        assert torch.equal(compiled(x, 5, e).sample, unet(x, 5, e).sample)
        assert "no kernel image" in said[-1] and not compiled.blocks
    else:
        with pytest.raises(torch.OutOfMemoryError):
            compiled(x, 5, e)
        assert compiled.blocks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiled_blocks_agree(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dynamo and AOTAutograd without a C++ compiler: failures here would also be failures on a GPU."""
    torch._dynamo.reset()
    unet = make_unet(48, dtype, levels=2)
    factors = trained_factors(unet, Recipe(rank=2))
    compile = torch.compile
    monkeypatch.setattr(compiling, "missing", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda f, dynamic, options: compile(f, backend="aot_eager", dynamic=dynamic))
    said: list[str] = []
    compiled = compiling.Compiled(unet, torch.device("cpu"), "on", tmp_path, said.append)
    with Fused(unet):
        loss, gradients = loss_and_gradients(unet, factors)
        torch._dynamo.utils.counters.clear()
        mine, mine_gradients = loss_and_gradients(compiled, factors)
    assert len(said) == 1 and said[0].startswith("compiling")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] in range(1, 15)  # of 18 blocks: one for all of a kind
    assert not torch._dynamo.utils.counters["graph_break"]
    assert mine == pytest.approx(loss, rel=1e-2)
    assert (mine_gradients - gradients).norm() < 0.05 * gradients.norm()


def _one_of_four(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    sent: list[int] = []
    reduce = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor, **options: (sent.append(tensor.nbytes), reduce(tensor, **options))[1]
    t, state = make_training(Path(folder) / "run", processes=Processes(rank=rank, count=count), total=6)
    stop_at = int(os.environ["STOP_AT"])
    steps = list(train(t, state, lambda: rank == 2 and stop_at <= state.step))
    torch.save({"factors": [p.data for p in state.parameters], "sent": sent, "done": steps[-1].done,
                "stopped": steps[-1].stopped}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_four_processes_train_the_same_as_one_and_send_one_buffer_a_step(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Steps of 4, 4 and 2 pictures: in the last one two processes have none. One process alone is asked to stop after two."""
    monkeypatch.setenv("STOP_AT", "2")
    # forked processes need no imports; CUDA would not work in them
    method = "spawn" if torch.cuda.is_available() or os.name == "nt" else "fork"
    torch.multiprocessing.start_processes(_one_of_four, args=(4, str(tmp_path)), nprocs=4, start_method=method)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    done = results[0]["done"]
    assert {(r["done"], r["stopped"]) for r in results} == {(4, True)} and done == 4
    assert (tmp_path / f"run/checkpoints/step-{done:06d}").is_dir()
    alone, state = make_training(tmp_path / "alone", total=6)
    for step in train(alone, state):
        if step.done == done:
            break
    assert results[0]["sent"] == [state.reduce_buffer.nbytes] * done
    for mine, theirs in zip(results[0]["factors"], state.parameters, strict=True):
        torch.testing.assert_close(mine, theirs.data, rtol=1e-3, atol=1e-4)


def test_every_step_is_reported_once_and_written(tmp_path: Path) -> None:
    t, state = make_training(tmp_path, total=6, checkpoint_every=3)
    with Metrics(tmp_path / "metrics.jsonl", first=0, total=6) as metrics:
        for step in train(t, state):
            for report in step.reports:
                metrics.report(report)
            assert len(step.reports) == {1: 0, 3: 2, 4: 0, 6: 2}.get(step.done, 1)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in lines] == [t.schedule(k) for k in range(6)]
    assert all(line["pictures_per_second"] > 0 for line in lines)
