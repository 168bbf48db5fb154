"""Files are verified before use; after any damage or kill, the same command ends with the same LoRA."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

import convert
from convert.errors import JobError
from tests.trainer import small_run
from trainer.__main__ import main
from trainer.encoding.cache import EncodingCache
from trainer.recipe import Recipe
from trainer.runs.lock import output_lock
from trainer.runs.record import read_record, write_record
from trainer.training import processes
from trainer.training.metrics import Metrics, read_lines

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(os.name == "nt", reason="forked processes and signals are POSIX")]


class Run:
    """A run of four steps in a folder, with its command."""

    def __init__(self, folder: Path, inputs: Path) -> None:
        self.out, self.path, self.log = folder / "s.safetensors", folder / "run", folder / "log.txt"
        self.command = small_run.arguments(inputs / "base", inputs / "drawings", inputs / "cache", self.out, self.path)

    def checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoints/step-{step:06d}"

    def cut_short(self) -> None:
        """As if killed after its last checkpoint but before its outputs were written."""
        for file in (self.out, self.out.with_suffix(".json"), *(self.path / n for n in ("finished.json", "export.json"))):
            file.unlink()

    @property
    def hash(self) -> str:
        return small_run.data_hash(self.out)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    small_run.write_base(folder / "base")
    small_run.write_drawings(folder / "drawings")
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undamaged run. Tests copy it."""
    run = Run(tmp_path_factory.mktemp("whole"), inputs)
    assert main(run.command) == 0
    return run


@pytest.fixture
def run(whole: Run, inputs: Path, tmp_path: Path) -> Run:
    """A copy of it."""
    shutil.copytree(whole.out.parent, tmp_path, dirs_exist_ok=True)
    copy = Run(tmp_path, inputs)
    write_record(copy.path / "export.json", {"out": str(copy.out.resolve())})
    return copy


def zero_half(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def flip(file: Path, at: int = -3) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def forget_checksum(file: Path, **changed: object) -> None:
    fields = json.loads(file.read_text())
    del fields["sha256"]
    file.write_text(json.dumps(fields | changed))


def rename_tensor(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"attn1_to_q.lora_up", b"attn1_to_q.lora_uq"))


DAMAGE: dict[str, Callable[[Path, Run], object]] = {
    "half of the factors": lambda at, run: zero_half(at / "factors.safetensors"),
    "half of the optimizer": lambda at, run: zero_half(at / "optimizer.safetensors"),
    "factors of another step": lambda at, run: shutil.copy(run.checkpoint(2) / "factors.safetensors", at),
    "record of another step": lambda at, run: shutil.copy(run.checkpoint(3) / "step.json", at),
    "a digit of the record": lambda at, run: (at / "step.json").write_text(
        (at / "step.json").read_text().replace('"weight_decay": 0.01', '"weight_decay": 0.02')),
    "a record by hand": lambda at, run: forget_checksum(at / "step.json", micro_batch=-3),
    "a deep record": lambda at, run: (at / "step.json").write_text("[" * 100_000),
    "no record": lambda at, run: (at / "step.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped(damage: str, run: Run, whole: Run, capsys: pytest.CaptureFixture) -> None:
    run.cut_short()
    DAMAGE[damage](run.checkpoint(4), run)
    assert main(run.command) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "step-000004" in line]
    assert len(said) == 1 and said[0].endswith("; resuming from step-000003") and run.hash == whole.hash
    assert read_record(run.checkpoint(4) / "step.json") == read_record(whole.checkpoint(4) / "step.json")  # saved again


def test_without_a_sound_checkpoint_it_starts_over_and_reports_it(run: Run, whole: Run, capsys: pytest.CaptureFixture) -> None:
    run.cut_short()
    for step in (3, 4):
        flip(run.checkpoint(step) / "optimizer.safetensors")
    flip(run.path / "recipe.json", 40)
    assert main(run.command) == 0
    said = capsys.readouterr().out
    assert said.count("training starts at its first step") == 2 and "recipe.json" in said and run.hash == whole.hash


def test_checkpoints_without_checksums_are_not_started_over(run: Run, capsys: pytest.CaptureFixture) -> None:
    run.cut_short()
    for step in (1, 2, 3, 4):
        forget_checksum(run.checkpoint(step) / "step.json")
    forget_checksum(run.path / "recipe.json")
    assert main(run.command) == 1
    assert "earlier version" in capsys.readouterr().err and (run.checkpoint(4) / "factors.safetensors").exists()


FINISHED_DAMAGE: dict[str, tuple[Callable[[Run], object], str]] = {
    "half of the LoRA": (lambda run: zero_half(run.out), "s.safetensors: its tensors are not those"),
    "a tensor's name": (lambda run: rename_tensor(run.out), "s.safetensors: its tensors are not those"),
    "the card": (lambda run: zero_half(run.out.with_suffix(".json")), "s.json.bak"),
    "the loss curve": (lambda run: zero_half(run.path / "loss.png"), "loss.png"),
    "diffusers' file": (lambda run: flip(run.path / "pytorch_lora_weights.safetensors"), "pytorch_lora_weights"),
    "finished.json": (lambda run: flip(run.path / "finished.json", 40), "finished.json: its checksum"),
}


@pytest.mark.parametrize("damage", FINISHED_DAMAGE)
def test_a_damaged_output_is_made_again(damage: str, run: Run, whole: Run, capsys: pytest.CaptureFixture) -> None:
    change, named = FINISHED_DAMAGE[damage]
    change(run)
    assert main(run.command) == 0
    said = capsys.readouterr().out
    assert named in said and "wrote" in said and run.hash == whole.hash
    assert main(run.command) == 0 and "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["recipe.json", "export.json"])
@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"recipe": 5, "out": 7}', '{"a": 1%s}' % ("0" * 400), "\0" * 100])
def test_a_damaged_record_of_a_finished_run_stops_nothing(name: str, text: str, run: Run,
                                                          capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    (run.path / name).write_text(text)
    assert main(run.command) == 0
    assert "nothing to do" in capsys.readouterr().out
    if not text.startswith("{\"recipe"):  # that one has no checksum, as earlier versions wrote it
        assert read_record(run.path / name)


def test_changes_by_the_user_are_kept(run: Run, capsys: pytest.CaptureFixture) -> None:
    """An edited card, the user's own picture, other metadata; then the LoRA is damaged and made again."""
    card = run.out.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"preferred weight": 0.3, "notes": "mine"}))
    shutil.copy(run.path / "loss.png", run.out.with_suffix(".png"))
    picture = run.out.with_suffix(".png").read_bytes()
    save_file(load_file(run.out), run.out, {"mine": "yes"})
    assert main(run.command) == 0
    assert "metadata was changed" in (said := capsys.readouterr().out) and "nothing to do" in said
    run.out.unlink()
    assert main([*run.command, "--preview"]) == 0
    fields = json.loads(card.read_text())
    assert (fields["preferred weight"], fields["notes"]) == (0.3, "mine")
    assert run.out.with_suffix(".png").read_bytes() == picture


def test_another_recipe_is_refused_by_the_checkpoint_whatever_recipe_json_says(run: Run, capsys: pytest.CaptureFixture) -> None:
    run.cut_short()
    write_record(run.path / "recipe.json", {"recipe": Recipe(rank=8).as_dict()})
    assert main([*run.command, "--rank", "8"]) == 2
    assert "--rank was 4, now 8" in capsys.readouterr().err


def test_undamaged_lines_of_the_metrics_are_kept(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", []
    with Metrics(path, first=0, total=9) as metrics:
        for step in range(1, 10):
            metrics.held_out(step, step / 7)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"0.2857", b"0.2858")  # a digit
    lines[3] = b"\xff" * 20 + b"\n"
    lines[4] = b"[" * 100_000 + b"\n"
    lines[5] = b'{"step": "6"}\n'
    path.write_bytes(b"".join(lines) + b'{"step": 10, "held')  # cut short by a crash: no damage
    assert [line["step"] for line in read_lines(path, said.append)] == [1, 3, 7, 8, 9]
    assert len(said) == 1 and "4 of its 9 lines are damaged" in said[0]
    with Metrics(path, first=8, total=9):
        pass
    assert [line["step"] for line in read_lines(path, pytest.fail)] == [1, 3, 7, 8]


def test_two_runs_do_not_write_one_file(run: Run, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run.out.unlink()
    run.out.with_suffix(".json").unlink()
    with output_lock(run.out, ""):
        assert main([*run.command, "--run", str(tmp_path / "other")]) == 1
    said = capsys.readouterr().err
    assert "s.safetensors: another command will write it" in said and said.count("\n") == 1
    (tmp_path / ".s.safetensors.lock").write_text("")  # a killed command's
    assert main(run.command) == 0
    assert not (tmp_path / ".s.safetensors.lock").exists()


def test_another_runs_lora_of_the_same_recipe_is_kept(run: Run, capsys: pytest.CaptureFixture) -> None:
    """Published recipes have only the last names of paths; digests distinguish two folders of the same name."""
    said = dict(convert.read(run.out).metadata)
    assert len(said["scribble_data_hash"]) == 64
    tensors = {name: tensor + 1 for name, tensor in load_file(run.out).items()}
    save_file(tensors, run.out, said | {"scribble_data_hash": "0" * 64})
    before = run.out.read_bytes()
    assert main(run.command) == 2 and run.out.read_bytes() == before
    assert "exists and is not from this run" in capsys.readouterr().err
    save_file(tensors, run.out, said)
    assert main(run.command) == 0 and run.out.read_bytes() != before  # its own, changed since


def test_a_file_that_appears_while_it_trains_is_kept(run: Run, whole: Run, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    from trainer import train

    run.cut_short()
    monkeypatch.setattr(train, "draw_curve", lambda lines, path: run.out.write_bytes(b"somebody's"))
    assert main([*run.command, "--overwrite"]) == 1
    assert "appeared or changed" in capsys.readouterr().err and run.out.read_bytes() == b"somebody's"
    monkeypatch.undo()
    another = run.out.with_name("another.safetensors")
    assert main([*run.command, "--out", str(another)]) == 0
    assert small_run.data_hash(another) == whole.hash


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=str)
def test_killed_and_run_again_gives_the_same_lora(number: int, inputs: Path, whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path, inputs)
    for moment in ("recipe.json", "checkpoints/step-000002")[number != signal.SIGKILL :]:
        process = small_run.Forked(main, run.command, run.log)
        process.wait_for(run.path / moment)
        process.kill(number)
        status, said = process.wait()
        assert status == (-number if number == signal.SIGKILL else 130), said
        assert number == signal.SIGKILL or "stopping: the current step" in said and "stopped and saved at step" in said
    (run.path / "checkpoints/.step-000009.part").mkdir()  # as a kill in the middle of saving leaves it
    status, said = small_run.Forked(main, run.command, run.log).wait()
    assert status == 0 and "continuing after step" in said and run.hash == whole.hash
    assert not list(tmp_path.rglob(".*part")) and not list(tmp_path.glob(".*"))


def test_processes_stop_when_their_launcher_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher, its worker, and kill -9: SIGTERM reaches the worker, which can then save."""
    monkeypatch.setattr(processes, "POLL", 0.05)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    told = tmp_path / "told"
    launcher = os.fork()
    if not launcher:
        if os.fork():
            signal.pause()
        signal.signal(signal.SIGTERM, lambda *_: (told.write_text("stopped"), os._exit(0)))
        processes.join("cpu")
        (tmp_path / "joined").touch()
        signal.sigtimedwait([], 60)
        os._exit(1)
    for path in (tmp_path / "joined", told):
        for _ in range(1200):
            if path.exists():
                break
            signal.sigtimedwait([], 0.05)
        assert path.exists(), path
        if path.name == "joined":
            os.kill(launcher, signal.SIGKILL)
            os.waitpid(launcher, 0)


def test_a_shard_that_cannot_be_read_now_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    cache = EncodingCache(tmp_path, {"of": "tests"}, said.append)
    cache.add(["a"], {"x": torch.ones(1, 2)})
    [shard] = cache.folder.iterdir()
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error", str(path))))
    assert not list(cache.find(["a"])) and "Input/output error" in said[0]
    monkeypatch.undo()
    assert [name for name, _ in cache.find(["a"])] == ["a"]
    shutil.rmtree(cache.folder)
    cache.add(["b"], {"x": torch.ones(1, 2)})  # a cache that was deleted in the meantime
    assert [name for name, _ in cache.find(["b"])] == ["b"] and shard.parent.exists() and len(said) == 1


@pytest.mark.parametrize("text", [
    '{"recipe": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"seed": 1%s}' % ("0" * 400), '{"targets": "%s"}' % ("(" * 5000),
    "[]", "null", '{"recipe": null}', '{"rank": true}', '{"base": ["x"]}', '{"learning_rate": NaN}', '{"scale": 1e999}', "\0",
])
def test_a_hostile_recipe_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "recipe.json").write_text(text)
    assert main(["--recipe", str(tmp_path / "recipe.json"), "--dry-run", "--device", "cpu"]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_resumed_run_maps_no_file_of_its_checkpoints(run: Run) -> None:
    """Windows cannot delete a mapped file."""
    from trainer.training import checkpoints

    found = checkpoints.read(run.checkpoint(4))
    if sys.platform == "linux":
        assert "optimizer.safetensors" not in Path("/proc/self/maps").read_text()
    expected = load((run.checkpoint(4) / "factors.safetensors").read_bytes())
    assert all(torch.equal(found.factors[name], expected[name]) for name in expected)
    with pytest.raises(JobError, match="belongs to another run"):
        checkpoints.read(run.checkpoint(4), {"recipe": {}})
