"""Studies: tables are read strictly, checkpoints are the run's own factors, and failed rows are in the table too."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convert import read
from convert.errors import JobError, UsageError
from trainer.presets import PRESETS
from trainer.recipe import Recipe
from trainer.runs.lock import lock
from trainer.study import run as study_run
from trainer.study.__main__ import main
from trainer.study.child import FAILED, run_module
from trainer.study.outcome import merged, write_outcome
from trainer.study.table import Study, known_tables, read_table
from trainer.training.checkpoint_lora import checkpoint_lora

SMALL = {"scales": "0,1", "per_scale": 2, "prompts": 1, "seeds": 1, "rows": 1, "drawings": 2, "sampling_steps": 1, "noises": 1,
         "complex": ["sun"]}


def toml(value: object) -> str:
    return json.dumps(value)


def table(folder: Path, text: str, clip: Path | None = None) -> Path:
    settings = SMALL | ({"clip": str(clip), "image_clip": str(clip)} if clip else {})
    path = folder / "table.toml"
    path.write_text(text + "\n[evaluate]\n" + "\n".join(f"{key} = {toml(value)}" for key, value in settings.items()))
    return path


def test_every_included_table_is_valid() -> None:
    assert known_tables() == ["bases", "checkpoints", "drawings", "noise-schedules", "presets", "rank-and-targets"]
    for name in known_tables():
        for preset in ({}, PRESETS["demo"]):
            study = read_table(name, preset, {})
            assert study.question.endswith(")") or study.question.endswith("?")
            assert study.checkpoints or len(study.rows) > 1
    steps = read_table("checkpoints", {}, {"steps": 20}).expanded(lambda recipe: recipe.steps)
    assert [row.step for row in steps.rows] == [3, 6, 9, 12, 15, 18, 20] and steps.x(steps.rows[0]) == 3
    schedules = read_table("noise-schedules", {}, {"rank": 2})
    assert {row.recipe.rank for row in schedules.rows} == {2} and schedules.x(schedules.rows[0]) is None
    assert [study.x(row) for study in [read_table("drawings", {}, {})] for row in study.rows] == [1, 5, 20, 40]


@pytest.mark.parametrize(("text", "words"), [
    ("axis = ", "is not TOML"), ("rows = 1", "unknown key 'rows'"), ("[[row]]\nranks = 2", "row 1: unknown key 'ranks'"),
    ("[[row]]\nrank = '2'", "row 1: rank is '2'; expected a whole number"), ("[[row]]\nrank = 0", "row 1: --rank 0: expected"),
    ("repeats = -1\n[[row]]\nrank = 1", "expected 1 or more"), ("equal = 'time'\ncheckpoints = 2", "expected epochs or steps"),
    ("checkpoints = 2\n[evaluate]\nscales = '0,3'", "[evaluate]: --scales 0,3: expected scales from 0 to 2"),
    ("checkpoints = 2\n[evaluate]\nper_scale = 0", "[evaluate]: --per-scale 0"),
    ("[[row]]\nrank = 1", "two or more"), ("[[row]]\nrank = 1\n[[row]]\nrank = 1", "two rows are called 'rank 1'"),
    ("[recipe]\nflip = 1", "flip is 1; expected true or false"),
])  # fmt: skip
def test_an_invalid_table_is_one_line(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "table.toml"
    path.write_text(text)
    assert main([str(path), "--out", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="neither a TOML file nor one of the studies bases, "):
        read_table("nothing", {}, {})


def test_a_checkpoint_as_a_file_is_the_run_at_that_step(base: Path, made: Path, recipe: Recipe, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    from trainer.lora import adapter
    from trainer.lora.lora_file import read_lora
    from trainer.training import checkpoints

    recipe = dataclasses.replace(recipe, alpha=1.0)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    factors = adapter.attach(unet, recipe)
    for name, factor in factors:
        factor.data = torch.randn(factor.shape) if ".lora_B." in name else factor.data
    state = SimpleNamespace(step=7, micro_batch=1, factors=factors, optimizer=torch.optim.AdamW([p for _, p in factors]),
                            scaler=torch.amp.GradScaler("cpu", enabled=False))
    checkpoints.save(tmp_path / "run" / "checkpoints", state, {}, "cpu")
    checkpoint_lora(tmp_path / "run", 7, recipe, made, tmp_path / "seven.safetensors")
    from convert import convert_file

    convert_file(adapter.save(unet, tmp_path), tmp_path / "whole.safetensors",
                 metadata={"ss_base_model_version": "like_sd_v1"})  # fmt: skip
    ours, theirs = load_file(tmp_path / "seven.safetensors"), load_file(tmp_path / "whole.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    said = read_lora(tmp_path / "seven.safetensors")
    assert said.recipe == recipe and said.trigger == "a scribble of"
    assert read(tmp_path / "seven.safetensors").metadata["ss_steps"] == "7"
    with pytest.raises(JobError, match="step-000008.*delete the run's folder"):
        checkpoint_lora(tmp_path / "run", 8, recipe, made, tmp_path / "eight.safetensors")


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the rows' commands in this process, which saves their imports; lists them."""
    from trainer.__main__ import main as train
    from trainer.evaluate.__main__ import main as evaluate

    ran: list[str] = []

    def command(folder: Path, module: str, *arguments: object) -> None:
        ran.append(module)
        if {"trainer": train, "trainer.evaluate": evaluate}[module]([str(word) for word in arguments]):
            (folder / FAILED).write_text(f"{module} failed")

    monkeypatch.setattr(study_run, "run_module", command)
    return ran


def test_a_study_of_checkpoints_from_start_to_end(
    recipe: Recipe, clip: Path, tmp_path: Path, within: list[str], capsys: pytest.CaptureFixture
) -> None:
    path = table(tmp_path, "question = 'How many?'\naxis = 'step'\ncheckpoints = 2", clip)
    arguments = [str(path), "--out", str(tmp_path / "out"), "--base", recipe.base, "--data", recipe.data, "--categories",
                 "apple,house", "--per-category", "2", "--rank", "1", "--steps", "4", "--batch", "2", "--accumulation", "1",
                 "--device", "cpu", "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert main(arguments) == 0 and within == ["trainer", "trainer.evaluate", "trainer.evaluate"]
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [row["x"] for row in found["rows"]] == [2, 4]
    report = json.loads((tmp_path / "out" / "rows" / "step-2" / "report.json").read_text())
    at = report["scales"].index(found["rows"][0]["shown"])
    assert found["rows"][0]["shown"] in (report["recommended"]["scale"], report["recommended"]["best"])
    assert found["rows"][0]["groups"]["seen"]["similarity"]["mean"] == report["groups"]["seen"]["similarity"]["mean"][at]
    assert (tmp_path / "out" / "plot.png").stat().st_size > 5000
    before = (tmp_path / "out" / "table.md").read_bytes()
    assert main(arguments) == 0 and (tmp_path / "out" / "table.md").read_bytes() == before  # again: nothing is done anew
    capsys.readouterr()
    assert main([*arguments, "--seed", "3"]) == 2 and "contains a study with other rows" in capsys.readouterr().err


def test_a_row_that_fails_is_a_line_of_the_table(
    recipe: Recipe, made: Path, clip: Path, tmp_path: Path, within: list[str]
) -> None:
    rows = f"axis = 'base'\n[[row]]\nname = 'its own'\non = {toml(recipe.base)}\n[[row]]\nname = 'no such'\non = '/no/base'\n"
    path = table(tmp_path, rows, clip)
    assert main([str(path), "--out", str(tmp_path / "out"), "--lora", str(made), "--device", "cpu",
                 "--cache", str(tmp_path / "cache")]) == 1  # fmt: skip
    assert within == ["trainer.evaluate"] * 2
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| no such | failed: trainer.evaluate failed |" in text and "| its own | " in text


def test_a_failed_command_reports_the_reason(tmp_path: Path) -> None:
    lacking = tmp_path / "no.safetensors"
    run_module(tmp_path, "trainer.evaluate", lacking, "--out", tmp_path / "r")
    said = (tmp_path / "failed.txt").read_text()
    assert said == f"trainer.evaluate: {lacking}: there is no such file: give a LoRA, .safetensors"


def test_a_study_whose_rows_all_fail_has_a_table(tmp_path: Path) -> None:
    study = Study("why?", "x", read_table("drawings", {}, {}).rows[:1], 0, {})
    row = {"name": "a | b", "line": "a | b", "series": "", "x": None, "failed": "because"}
    assert "a \\| b | failed: because" in write_outcome(study, [row], tmp_path)


def test_drawings_by_steps_is_a_grid_with_equal_steps_or_equal_epochs() -> None:
    """Sections 2.1 and 3.2: 100 categories of 1, 5, 20 and 40 drawings; 70 epochs or 4,410 steps for all."""
    def total(recipe: Recipe) -> int:
        return recipe.total_steps(100 * recipe.per_category)

    steps = read_table("drawings", {}, {}).expanded(total)
    assert {total(row.recipe) for row in steps.rows} == {4410} and len(steps.rows) == 24
    assert [row.step for row in steps.rows[:6]] == [735, 1470, 2205, 2940, 3675, 4410]
    assert (steps.rows[0].name, steps.rows[0].series) == ("per_category 1, step 735", "per_category 1")
    epochs = read_table("drawings", {}, {}, equal="epochs").expanded(total)
    assert {row.recipe.epochs for row in epochs.rows} == {70} and {row.recipe.steps for row in epochs.rows} == {0}
    last = [max(row.step for row in epochs.rows if row.recipe.per_category == n) for n in (1, 5, 20, 40)]
    assert last == [280, 1120, 4410, 8750]


def test_repeats_train_other_seeds_on_the_same_data() -> None:
    study = read_table("noise-schedules", {}, {"seed": 5}, repeats=3).expanded(lambda recipe: 1)
    assert len(study.rows) == 12 and [row.recipe.seed for row in study.rows[:3]] == [5, 6, 7]
    assert {row.recipe.data_seed_used for row in study.rows} == {5}
    assert {row.line for row in study.rows[:3]} == {study.rows[0].cell}


def outcome(line: str, seed: int, values: list[float]) -> dict:
    """A row's outcome with these similarities of its categories."""
    value = {"mean": sum(values) / len(values), "low": 0.0, "high": 1.0}
    measures = ("similarity", "prompt_score", "clip_score", "ink_distance", "held_out_loss")
    return {"name": f"{line}, seed {seed}", "line": line, "series": "", "x": None, "failed": "", "shown": 0.5,
            "groups": {"seen": dict.fromkeys(measures, value)}, "recommended": {"scale": 0.5 if seed else None},
            "categories": {f"seen: {k}": number for k, number in enumerate(values)}}  # fmt: skip


def test_seeds_are_taken_together_and_rows_compared_paired(tmp_path: Path) -> None:
    level = [0.2, 0.5, 0.7, 0.9, 0.4]
    rows = [outcome("a", seed, [x + 0.02 * seed for x in level]) for seed in range(3)]
    rows += [outcome("b", seed, [x + 0.02 * seed + 0.1 + 0.001 * k for k, x in enumerate(level)]) for seed in range(3)]
    first, second = merged(rows)
    assert first["seeds"] == 3 and abs(first["groups"]["seen"]["similarity"]["mean"] - 0.56) < 1e-9
    assert abs(first["groups"]["seen"]["similarity"]["spread"] - 0.02) < 1e-9 and first["against_first"] is None
    gain = second["against_first"]  # the categories' own levels, 0.2 to 0.9, are left out
    assert abs(gain["mean"] - 0.102) < 1e-9 and 0.09 < gain["low"] < 0.102 < gain["high"] < 0.12
    table = write_outcome(Study("which?", "x", [], 0, {}, repeats=3), rows, tmp_path)
    assert "| a | none (0.5), 0.5, 0.5 |" in table and "0.56 ± 0.02" in table and "+0.102 [+0.1" in table
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_a_row_that_overrides_the_command_line_is_reported() -> None:
    assert read_table("rank-and-targets", {}, {"rank": 2}).notes[0] == (
        "row 'rank 1, attention' has its own rank, 1, which overrides --rank 2")
    assert read_table("rank-and-targets", {}, {"seed": 2}).notes == []


def test_a_damaged_or_busy_folder_is_one_line(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["noise-schedules", "--out", str(out), "--base", recipe.base, "--data", recipe.data, "--device", "cpu"]
    (out / "rows.json").write_text('{"rows": [')
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "rows.json: is not valid JSON" in error and error.count("\n") == 1
    with lock(out, "x"):
        assert main(arguments) == 1
    assert "another command is using this folder" in capsys.readouterr().err


CHILD = """
import signal, sys, time
from pathlib import Path
from types import SimpleNamespace
def stop(number, frame):
    time.sleep(0.5)
    Path(sys.argv[1]).write_text(f"saved on {signal.Signals(number).name}")
    sys.exit(130)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
Path(sys.argv[1]).write_text("at work")
time.sleep(60)
"""
PARENT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from convert.errors import exit_status
from trainer.study.child import run_module
def work():
    run_module(Path(sys.argv[1]), "saver", Path(sys.argv[1]) / "state.txt")
    return 0
sys.exit(exit_status("study", work, stopped="stopped"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    """The study prints "stopped" only after its row's command has saved."""
    (tmp_path / "saver.py").write_text(CHILD)
    root, state = Path(__file__).parents[2], tmp_path / "state.txt"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"})  # fmt: skip
    while parent.poll() is None and not (state.exists() and state.read_text()):
        time.sleep(0.02)
    parent.send_signal(number)
    _, error = parent.communicate()
    assert state.read_text() == f"saved on {number.name}"
    assert (parent.returncode, error) == (130, "study: stopped\n")
