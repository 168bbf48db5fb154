"""The whole program on a small random base: files, hosts' forms, kill -9, several processes, bad input."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

import convert
from tests.drawings import write_drawings
from tests.trainer.small_run import Forked
from trainer.__main__ import main
from trainer.encoding.encoded_set import EncodedSet
from trainer.runs.run_folder import RunFolder
from trainer.training import loop
from trainer.training.state import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    write_drawings(folder, per_category=12, seed=1)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def arguments(tmp_path: Path, small_base: Path, drawings: Path, cache: Path) -> list[str]:
    return ["--out", str(tmp_path / "s.safetensors"), "--run", str(tmp_path / "run"), "--base", str(small_base),
            "--data", str(drawings), "--categories", "apple,star", "--per-category", "6", "--batch", "4", "--accumulation", "1",
            "--learning-rate", "1e-2", "--steps", "6", "--checkpoint-every", "2", "--cache", str(cache), "--device", "cpu"]


def hash_of(path: Path) -> str:
    return convert.read(path).metadata["sshs_model_hash"]


def test_every_output_is_written_and_the_libraries_agree(arguments: list[str], tmp_path: Path, random_base: Path,
                                                         capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    arguments = [*arguments, "--base", str(random_base)]
    assert main(arguments) == 0
    lora = convert.read(tmp_path / "s.safetensors")
    assert (len(lora.modules), lora.rank, lora.base) == (128, 4, "like_sd_v1")
    assert json.loads(lora.metadata["scribble_recipe"])["steps"] == 6
    card = json.loads((tmp_path / "s.json").read_text())
    assert (card["activation text"], card["preferred weight"], card["sd version"]) == ("a scribble of", 0.8, "Unknown")
    assert (tmp_path / "s.png").stat().st_size > 1000 and (tmp_path / "run/loss.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert len([line for line in lines if "held_out_loss" in line]) == 3
    check_against_diffusers(tmp_path, random_base)
    capsys.readouterr()
    before = (tmp_path / "s.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "s.safetensors").stat().st_mtime_ns == before


def test_the_held_out_loss_gets_the_held_out_drawings(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sets: dict[str, EncodedSet] = {}

    def spy(**settings):
        sets.update({name: settings[name] for name in ("encoded", "held_out")})
        return prepare(**settings)

    monkeypatch.setattr("trainer.train.prepare", spy)
    assert main([*arguments, "--steps", "1", "--no-preview"]) == 0
    trained, held_out = ({row.numpy().tobytes() for row in sets[name].mean[:, 0]} for name in ("encoded", "held_out"))
    assert len(trained) == 12 and len(held_out) == len(sets["held_out"]) > 3 and not trained & held_out


def check_against_diffusers(tmp_path: Path, base: Path) -> None:
    """Both files, loaded by diffusers, give the UNet output of the trained factors merged in this test."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    x, e = torch.randn(1, 4, 16, 16), torch.randn(1, 32, 96)
    trained = load_file(sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1] / "factors.safetensors")
    merged = UNet2DConditionModel.from_pretrained(base / "unet").eval()
    plain = merged(x, 7, e).sample
    for name in [n for n in trained if ".lora_A." in n]:
        module = merged.get_submodule(name.partition(".lora_A.")[0])
        module.weight.data += trained[name.replace(".lora_A.", ".lora_B.")] @ trained[name]  # alpha = rank
    expected = merged(x, 7, e).sample
    assert (expected - plain).abs().max() > 1e-3
    for folder, file in ((tmp_path / "run", "pytorch_lora_weights.safetensors"), (tmp_path, "s.safetensors")):
        unet = UNet2DConditionModel.from_pretrained(base / "unet").eval()
        state, network_alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(folder), weight_name=file, return_lora_metadata=True)
        StableDiffusionPipeline.load_lora_into_unet(state, network_alphas, unet, metadata=metadata)
        torch.testing.assert_close(unet(x, 7, e).sample, expected, rtol=1e-4, atol=1e-5)


def spawn(arguments: list[str], **environment: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-m", "trainer", *arguments, "--no-preview"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is a POSIX signal")
def test_killed_and_run_again_gives_the_same_file(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    long = [*arguments, "--steps", "14", "--checkpoint-every", "2", "--no-preview"]
    process = spawn(long)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints/step-000004").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "s.safetensors").exists()
    assert main(long) == 0 and "continuing after step" in capsys.readouterr().out
    assert main([*long, "--out", str(tmp_path / "t.safetensors"), "--run", str(tmp_path / "run2")]) == 0
    assert hash_of(tmp_path / "s.safetensors") == hash_of(tmp_path / "t.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="gloo on Windows is not tried")
def test_two_processes_train_the_same_as_one(arguments: list[str], tmp_path: Path) -> None:
    """As torchrun and, on GPUs, accelerate launch start them; accelerate on a CPU would want MPI for a second one."""
    arguments = [*arguments, "--no-preview"]
    assert main([*arguments, "--run", str(tmp_path / "one"), "--out", str(tmp_path / "one.safetensors")]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [*arguments, "--run", str(tmp_path / "two"), "--out", str(tmp_path / "two.safetensors")]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def launched(rank: str, argv: list[str]) -> int:
        os.environ.update(common, RANK=rank, LOCAL_RANK=rank)
        PartialState._reset_state()  # of this process's own, if an earlier test made one
        return main(argv)

    two = [Forked(partial(launched, rank), arguments, tmp_path / f"log{rank}") for rank in "01"]
    ended, said = zip(*(process.wait() for process in two), strict=True)
    assert ended == (0, 0), said
    assert "2 at once" in said[0] and "at once" not in said[1], said  # each computes half of 4, the first one speaks
    losses = []
    for run in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line.get("loss", line.get("held_out_loss")) for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_changed_recipe_in_the_same_run_is_refused_with_the_difference(arguments: list[str], tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    (tmp_path / "run/checkpoints/step-000002").mkdir(parents=True)
    from trainer.cli import parse

    recipe, _ = parse(arguments)
    (tmp_path / "run/recipe.json").write_text(json.dumps({"recipe": recipe.as_dict()}))
    assert main([*arguments, "--rank", "8"]) == 2
    assert "--rank was 4, now 8" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "named"), [
    (["--out", "lora.pt"], "--out"), (["--out", "no/such/folder/a.safetensors"], "--out"), (["--data", "nowhere"], "--data"),
    (["--base", "nowhere/model.safetensors"], "--base"), (["--device", "tpu"], "--device"),
    (["--categories", "aple"], "apple"), (["--categories", "99"], "--categories"), (["--categories", "²"], "--categories"),
    (["--targets", "nothing"], "--targets"), (["--device", "cpu:x"], "--device"), (["--data", "~nobody/x"], "--data"),
    (["--rank", "1000000000"], "--rank"), (["--learning-rate", "1e39"], "--learning-rate"), (["--alpha", "1e39"], "--alpha"),
])
def test_bad_input_is_one_line_that_names_the_flag(arguments: list[str], more: list[str], named: str,
                                                   capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    assert main([*arguments, *more]) == 2
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1
    assert not (Path(arguments[3]) / "recipe.json").exists(), "the corrected command must find the run folder free"


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_gets_every_step(tracker: str, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    process = spawn([*arguments, "--track", tracker], WANDB_MODE="offline")  # a process of its own: trackers keep state
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and (tmp_path / "s.safetensors").exists(), said
    kept = list((tmp_path / "run").rglob("events.out.tfevents.*" if tracker == "tensorboard" else "run-*.wandb"))
    assert kept and all(b"grad_norm" in file.read_bytes() for file in kept[:1])


def test_a_file_from_elsewhere_is_not_overwritten(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "s.png").write_bytes(b"mine")
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "s.png").read_bytes() == b"mine"


def test_a_file_of_this_run_is_written_again_and_another_runs_is_not(arguments: list[str], tmp_path: Path,
                                                                     capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    """After an interruption while the card or the picture was written, the same command finishes."""
    out, run = tmp_path / "s.safetensors", tmp_path / "run"
    quick = [*arguments, "--no-preview", "--steps", "2"]
    assert main(quick) == 0
    (run / "finished.json").unlink()
    assert main(quick) == 0
    out.unlink()  # the card is still there
    assert main(quick) == 0
    theirs = [*quick, "--seed", "5", "--run", str(tmp_path / "theirs"), "--overwrite"]
    assert main(theirs) == 0
    theirs_hash = hash_of(out)
    capsys.readouterr()
    assert main(quick) == 2
    assert "not from this run" in capsys.readouterr().err and hash_of(out) == theirs_hash


def test_another_folder_is_not_taken_for_a_run(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "pytorch_lora_weights.safetensors").write_bytes(b"mine")
    assert main(arguments) == 2
    assert "pytorch_lora_weights.safetensors" in capsys.readouterr().err
    assert main([*arguments, "--run", str(run / "pytorch_lora_weights.safetensors")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (run / "pytorch_lora_weights.safetensors").read_bytes() == b"mine"


def test_a_run_folder_serves_one_command_at_a_time(arguments: list[str], tmp_path: Path,
                                                   capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    with RunFolder(tmp_path / "run").lock():
        assert main(arguments) == 1
    assert "another command is using" in capsys.readouterr().err


def test_numbers_that_are_not_finite_end_the_run_before_anything_is_saved(arguments: list[str], tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch,
                                                                          capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    """A finite loss with an infinite gradient: only the norm and the factors show it."""
    update = loop.update

    def lost(t, state, rate):
        state.gradient[0] = float("inf")
        return update(t, state, rate)

    monkeypatch.setattr(loop, "update", lost)
    assert main([*arguments, "--steps", "1"]) == 1
    assert "step 1: the gradient's norm is inf" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists() and not (tmp_path / "s.safetensors").exists()


def test_a_base_of_other_widths_and_a_convolution_are_trained_too(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--steps", "2", "--no-preview", "--targets", r".*(conv1|attn2\.to_q)"]) == 0
    lora = convert.read(tmp_path / "s.safetensors")
    assert lora.base == "like_sd_v1" and any(name.endswith("conv1") for name in lora.modules)


def test_a_contact_sheet_replaces_only_a_contact_sheet(arguments: list[str], tmp_path: Path,
                                                       capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "precious.png").write_bytes(b"mine")
    for name in ("precious.txt", "precious.png"):
        assert main([*arguments[2:], "--contact-sheet", str(tmp_path / name)]) == 2
        assert "--contact-sheet" in capsys.readouterr().err and (tmp_path / name).read_bytes() == b"mine"
    for _ in range(2):
        assert main([*arguments[2:], "--contact-sheet", str(tmp_path / "sheet.png")]) == 0


def test_sd15_on_a_cpu_is_refused_without_device_cpu(arguments: list[str], capsys: pytest.CaptureFixture,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert main([*arguments[:-2], "--base", "stable-diffusion-v1-5/stable-diffusion-v1-5"]) == 2
    assert "--device cpu" in capsys.readouterr().err
