"""Studies: tables are read strictly, checkpoints are the run's own factors, rows end in one table whatever fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convert import read
from convert.errors import JobError, UsageError
from trainer.presets import PRESETS
from trainer.recipe import Recipe
from trainer.study import run as study_run
from trainer.study.__main__ import main
from trainer.study.outcome import write_outcome
from trainer.study.table import Study, known_tables, read_table
from trainer.training.checkpoint_lora import checkpoint_lora

SMALL = {"scales": "0,1", "per_scale": 2, "prompts": 1, "seeds": 1, "rows": 1, "drawings": 2, "steps": 1, "noises": 1,
         "complex": ["sun"]}


def toml(value: object) -> str:
    return json.dumps(value)


def table(folder: Path, text: str, clip: Path | None = None) -> Path:
    settings = SMALL | ({"clip": str(clip), "image_clip": str(clip)} if clip else {})
    path = folder / "table.toml"
    path.write_text(text + "\n[evaluate]\n" + "\n".join(f"{key} = {toml(value)}" for key, value in settings.items()))
    return path


def test_every_table_that_comes_along_is_sound() -> None:
    assert known_tables() == ["bases", "checkpoints", "drawings", "noise-schedules", "presets", "rank-and-targets"]
    for name in known_tables():
        for preset in ({}, PRESETS["demo"]):
            study = read_table(name, preset, {})
            assert study.question.endswith(")") or study.question.endswith("?")
            assert study.checkpoints or len(study.rows) > 1
    steps = read_table("checkpoints", {}, {"steps": 20}).with_steps(20)
    assert [row.step for row in steps.rows] == [3, 6, 9, 12, 15, 18, 20] and steps.x(steps.rows[0]) == 3
    schedules = read_table("noise-schedules", {}, {"rank": 2})
    assert {row.recipe.rank for row in schedules.rows} == {2} and schedules.x(schedules.rows[0]) is None
    assert [study.x(row) for study in [read_table("drawings", {}, {})] for row in study.rows] == [1, 5, 20, 40]


@pytest.mark.parametrize(("text", "words"), [
    ("axis = ", "is no TOML"), ("rows = 1", "unknown key 'rows'"), ("[[row]]\nranks = 2", "row 1: unknown key 'ranks'"),
    ("[[row]]\nrank = '2'", "row 1: rank is '2'; expected a whole number"), ("[[row]]\nrank = 0", "row 1: --rank 0: expected"),
    ("[[row]]\nrank = 1", "two or more"), ("[[row]]\nrank = 1\n[[row]]\nrank = 1", "two rows are called 'rank 1'"),
    ("checkpoints = 3\n[[row]]\n[[row]]\n", "at most one"), ("[recipe]\nflip = 1", "flip is 1; expected true or false"),
])  # fmt: skip
def test_a_table_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "table.toml"
    path.write_text(text)
    assert main([str(path), "--out", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="nor one of the studies bases, "):
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
                 metadata={"ss_base_model_version": "scribble_miniature"})  # fmt: skip
    ours, theirs = load_file(tmp_path / "seven.safetensors"), load_file(tmp_path / "whole.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    said = read_lora(tmp_path / "seven.safetensors")
    assert said.recipe == recipe and said.trigger == "a scribble of"
    assert read(tmp_path / "seven.safetensors").metadata["ss_steps"] == "7"
    with pytest.raises(JobError, match="step-000008.*delete the run's folder"):
        checkpoint_lora(tmp_path / "run", 8, recipe, made, tmp_path / "eight.safetensors")


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows' commands run in this process, which spares their imports; what was run is listed."""
    from trainer.__main__ import main as train
    from trainer.evaluate.__main__ import main as evaluate

    ran: list[str] = []

    def command(folder: Path, module: str, *arguments: object) -> None:
        ran.append(module)
        if {"trainer": train, "trainer.evaluate": evaluate}[module]([str(word) for word in arguments]):
            (folder / study_run.FAILED).write_text(f"{module} failed")

    monkeypatch.setattr(study_run, "_command", command)
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
    at = report["scales"].index(report["recommended"]["scale"])
    assert found["rows"][0]["groups"]["seen"]["similarity"]["mean"] == report["groups"]["seen"]["similarity"]["mean"][at]
    assert (tmp_path / "out" / "plot.png").stat().st_size > 5000
    before = (tmp_path / "out" / "table.md").read_bytes()
    assert main(arguments) == 0 and (tmp_path / "out" / "table.md").read_bytes() == before  # again: nothing is done anew
    capsys.readouterr()
    assert main([*arguments, "--seed", "3"]) == 2 and "holds a study with other rows" in capsys.readouterr().err


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


def test_a_failed_command_says_why(tmp_path: Path) -> None:
    lacking = tmp_path / "no.safetensors"
    study_run._command(tmp_path, "trainer.evaluate", lacking, "--out", tmp_path / "r")
    said = (tmp_path / "failed.txt").read_text()
    assert said == f"trainer.evaluate: {lacking}: there is no such file: give a LoRA, .safetensors"


def test_a_study_in_which_all_fails_has_a_table(tmp_path: Path) -> None:
    study = Study("why?", "x", read_table("drawings", {}, {}).rows[:1], 0, {})
    row = {"name": "a | b", "failed": "because"}
    assert "a \\| b | failed: because" in write_outcome(study, [row], tmp_path)
