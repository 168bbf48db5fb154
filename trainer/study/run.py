"""A study from start to end: every recipe trained once, every row measured, one table. Rows run as commands of their own.

So a row's memory is given back, its failure is one line in the table, and each goes on where it stopped. Under
`accelerate launch` the processes share out first the trainings, then the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from convert.errors import JobError, UsageError
from convert.files import write_json, write_text
from trainer.data import check_data
from trainer.evaluate.settings import Settings
from trainer.recipe import Recipe, flag
from trainer.study.cli import Job
from trainer.study.outcome import outcome_of, write_outcome
from trainer.study.table import Row, Study
from trainer.training.checkpoint_lora import checkpoint_lora

FAILED, STOPPED = "failed.txt", 130
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Alone:
    """One process; under a launcher accelerate's PartialState takes its place, which has the same three names."""

    process_index, num_processes, local_process_index = 0, 1, 0

    def wait_for_everyone(self) -> None:
        """Nobody else is there."""


def run(study: Study, job: Job) -> int:
    """Do the study; returns the exit status: 1 where a row failed. The table has all the others."""
    state = _processes()
    if study.checkpoints:
        study = study.with_steps(_total_steps(study.rows[0].recipe))
    if state.process_index == 0:
        _claim(study, job)
    state.wait_for_everyone()
    recipes = list(dict.fromkeys(row.recipe for row in study.rows))
    if not job.lora:
        for recipe in recipes[state.process_index :: state.num_processes]:
            _train(study, recipe, job, state)
    state.wait_for_everyone()
    for row in study.rows[state.process_index :: state.num_processes]:
        _evaluate(study, row, job, state)
    state.wait_for_everyone()
    if state.process_index:
        return 0
    rows = [outcome_of(row, study.x(row), _row_folder(row, job) / "report.json", _failure(row, job)) for row in study.rows]
    print(write_outcome(study, rows, job.out))
    print(f"wrote {job.out / 'table.md'}, plot.png and study.json")
    return 1 if any(row["failed"] for row in rows) else 0


def _processes() -> Any:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone()
    from accelerate import PartialState

    return PartialState(cpu=True, timeout=timedelta(days=30))  # a process may wait long for another's training


def _total_steps(recipe: Recipe) -> int:
    if recipe.steps:
        return recipe.steps
    pictures = check_data(recipe)
    if pictures is None:
        raise UsageError(f"--data {recipe.data}: how many steps a run over this folder has is not known before: give --steps")
    return recipe.total_steps(pictures)


def _claim(study: Study, job: Job) -> None:
    """Make the folder this study's, and forget failures of the last time. UsageError where it is another's."""
    mine = {"rows": [[row.name, row.recipe.as_dict(), row.on, row.step] for row in study.rows], "evaluate": study.evaluate,
            "lora": str(job.lora or "")}  # fmt: skip
    mine, place = json.loads(json.dumps(mine)), job.out / "rows.json"
    if job.out.exists() and not job.out.is_dir():
        raise UsageError(f"--out {job.out}: is a file; name a folder for the study")
    if place.exists() and json.loads(place.read_text(encoding="utf-8")) != mine:
        raise UsageError(f"--out {job.out}: holds a study with other rows: name another folder, or delete this one")
    job.out.mkdir(parents=True, exist_ok=True)
    write_json(place, mine)
    for old in job.out.rglob(FAILED):
        old.unlink()


def _run_folder(recipe: Recipe, job: Job) -> Path:
    digest = hashlib.sha256(json.dumps(recipe.as_dict(), sort_keys=True).encode()).hexdigest()
    return job.out / "runs" / digest[:12]


def _row_folder(row: Row, job: Job) -> Path:
    return job.out / "rows" / row.slug


def _train(study: Study, recipe: Recipe, job: Job, state: Any) -> None:
    folder = _run_folder(recipe, job)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recipe.json", {"recipe": recipe.as_dict()})
    every = study.checkpoint_every(_total_steps(recipe)) if study.checkpoints else 500
    print(f"training {folder.name}: " + ", ".join(row.name for row in study.rows if row.recipe == recipe), flush=True)
    # --overwrite: the folder is the study's own, and a stop may have come between the LoRA and the end of the run
    _command(folder, "trainer", "--recipe", folder / "recipe.json", "--out", folder / "lora.safetensors", "--run",
             folder / "run", "--checkpoint-every", every, "--no-preview", "--overwrite", *_where(job, state))


def _evaluate(study: Study, row: Row, job: Job, state: Any) -> None:
    run_folder, folder = _run_folder(row.recipe, job), _row_folder(row, job)
    if (run_folder / FAILED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lora = job.lora or run_folder / "lora.safetensors"
    if row.step:
        final, lora = lora, folder / "lora.safetensors"
        try:
            checkpoint_lora(run_folder / "run", row.step, row.recipe, final, lora)
        except JobError as error:
            write_text(folder / FAILED, str(error))
            return
    print(f"measuring {row.name}", flush=True)
    options: list[Any] = ["--base", row.on] if row.on else []
    for f in fields(Settings):
        value = study.evaluate.get(f.name)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            options += [flag(f.name), one]
    _command(folder, "trainer.evaluate", lora, "--out", folder, *options, *_where(job, state))


def _where(job: Job, state: Any) -> list[Any]:
    """Device and cache for a row's command: each process of a launcher has a GPU of its own."""
    device = job.device
    if device in ("auto", "cuda") and state.num_processes > 1:
        import torch

        if torch.cuda.is_available():
            device = f"cuda:{state.local_process_index % torch.cuda.device_count()}"
    return ["--device", device, "--cache", job.cache]


def _command(folder: Path, module: str, *arguments: Any) -> None:
    """Run `python -m module`; what it says last on stderr where it fails goes into `folder`. KeyboardInterrupt if stopped."""
    apart = {key: value for key, value in os.environ.items() if key not in _LAUNCHER and not key.startswith("TORCHELASTIC_")}
    errors = folder / "stderr.txt"
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with open(errors, "wb") as stream:
        child = subprocess.Popen(command, stderr=subprocess.PIPE, env=apart)
        assert child.stderr
        pipe = child.stderr.fileno()
        for chunk in iter(lambda: os.read(pipe, 4096), b""):  # bars go through as they come
            stream.write(chunk)
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
        status = child.wait()
    if status == STOPPED:
        raise KeyboardInterrupt
    if status:
        lines = errors.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
        write_text(folder / FAILED, lines[-1] if lines else f"exit status {status}")


def _failure(row: Row, job: Job) -> str:
    for folder in (_run_folder(row.recipe, job), _row_folder(row, job)):
        if (folder / FAILED).exists():
            return (folder / FAILED).read_text(encoding="utf-8").strip()
    return ""
