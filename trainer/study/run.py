"""Runs a study: trains every recipe once, measures every row, writes one table. Each row runs in a subprocess.

So a row's memory is freed, its failure is one line in the table, and each can resume after a stop. Under
`accelerate launch` the processes divide first the trainings, then the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import nullcontext
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from convert.errors import FileError, JobError, UsageError
from convert.files import write_json, write_text
from convert.files.json_file import read_object
from trainer.data import check_data
from trainer.evaluate.settings import Settings
from trainer.recipe import Recipe, flag
from trainer.runs.lock import lock
from trainer.study.child import FAILED, run_module
from trainer.study.cli import Job
from trainer.study.outcome import outcome_of, write_outcome
from trainer.study.table import Row, Study
from trainer.terminal import say
from trainer.training.checkpoint_lora import checkpoint_lora

ROWS = "rows.json"


class Launched(Protocol):
    """One of a launcher's processes: accelerate's PartialState, or `Alone`."""

    process_index: int
    num_processes: int
    local_process_index: int

    def wait_for_everyone(self) -> None: ...


class Alone:
    """The only process."""

    process_index, num_processes, local_process_index = 0, 1, 0

    def wait_for_everyone(self) -> None:
        """Does nothing: there is no other process."""


def run(study: Study, job: Job) -> int:
    """Run the study; returns the exit status: 1 if a row failed. The table has all other rows."""
    state = _processes()
    study = study.expanded(_total_steps)
    first = state.process_index == 0
    if job.out.exists() and not job.out.is_dir():
        raise UsageError(f"--out {job.out}: is a file; name a folder for the study")
    with lock(job.out, "give another --out") if first else nullcontext():
        if first:
            for note in study.notes:
                say(note)
            _claim(study, job)
        state.wait_for_everyone()
        _all_rows(study, job, state)
        if not first:
            return 0
        rows = [outcome_of(row, study.x(row), _row_folder(row, job) / "report.json", _failure(row, job)) for row in study.rows]
        say(write_outcome(study, rows, job.out))
        say(f"wrote {job.out / 'table.md'}, plot.png and study.json")
    return 1 if any(row["failed"] for row in rows) else 0


def _all_rows(study: Study, job: Job, state: Launched) -> None:
    """Train every recipe once, then measure every row; this process does its share."""
    recipes = list(dict.fromkeys(row.recipe for row in study.rows))
    if not job.lora:
        for recipe in recipes[state.process_index :: state.num_processes]:
            _train(study, recipe, job, state)
    state.wait_for_everyone()
    for row in study.rows[state.process_index :: state.num_processes]:
        _evaluate(study, row, job, state)
    state.wait_for_everyone()


def _processes() -> Launched:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone()
    from accelerate import PartialState

    return PartialState(cpu=True, timeout=timedelta(days=30))  # a process may wait a long time for another's training


def _total_steps(recipe: Recipe) -> int:
    if recipe.steps:
        return recipe.steps
    pictures = check_data(recipe)
    if pictures is None:
        raise UsageError(f"--data {recipe.data}: the number of steps for this folder is not known in advance: give --steps")
    return recipe.total_steps(pictures)


def _claim(study: Study, job: Job) -> None:
    """Reserve the folder for this study and clear old failures. UsageError if it belongs to another study."""
    mine = {"rows": [[row.name, row.recipe.as_dict(), row.on, row.step] for row in study.rows], "evaluate": study.evaluate,
            "lora": str(job.lora or "")}  # fmt: skip
    mine, place = json.loads(json.dumps(mine)), job.out / ROWS
    if place.exists():
        try:
            theirs = read_object(place)
        except FileError as error:
            raise JobError(f"{error}: delete it if this folder is this study's, else name another --out") from error
        if theirs != mine:
            raise UsageError(f"--out {job.out}: contains a study with other rows: name another folder, or delete this one")
    write_json(place, mine)
    for old in job.out.rglob(FAILED):
        old.unlink()


def _run_folder(recipe: Recipe, job: Job) -> Path:
    digest = hashlib.sha256(json.dumps(recipe.as_dict(), sort_keys=True).encode()).hexdigest()
    return job.out / "runs" / digest[:12]


def _row_folder(row: Row, job: Job) -> Path:
    return job.out / "rows" / row.slug


def _train(study: Study, recipe: Recipe, job: Job, state: Launched) -> None:
    folder = _run_folder(recipe, job)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recipe.json", {"recipe": recipe.as_dict()})
    every = study.checkpoint_every(_total_steps(recipe)) if study.checkpoints else 500
    say(f"training {folder.name}: " + "; ".join(dict.fromkeys(row.line for row in study.rows if row.recipe == recipe)))
    # --overwrite: the folder is the study's own, and a stop may have come after the LoRA was written
    run_module(folder, "trainer", "--recipe", folder / "recipe.json", "--out", folder / "lora.safetensors", "--run",
               folder / "run", "--checkpoint-every", every, "--no-preview", "--overwrite", *_where(job, state))


def _evaluate(study: Study, row: Row, job: Job, state: Launched) -> None:
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
    say(f"measuring {row.name}")
    options: list[object] = ["--base", row.on] if row.on else []
    for f in fields(Settings):
        value = study.evaluate.get(f.name)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            options += [flag(f.name), one]
    run_module(folder, "trainer.evaluate", lora, "--out", folder, *options, *_where(job, state))


def _where(job: Job, state: Launched) -> list[object]:
    """Device and cache for a row's command: each process of a launcher has its own GPU."""
    device = job.device
    if device in ("auto", "cuda") and state.num_processes > 1:
        import torch

        if torch.cuda.is_available():
            device = f"cuda:{state.local_process_index % torch.cuda.device_count()}"
    return ["--device", device, "--cache", job.cache]


def _failure(row: Row, job: Job) -> str:
    for folder in (_run_folder(row.recipe, job), _row_folder(row, job)):
        if (folder / FAILED).exists():
            return (folder / FAILED).read_text(encoding="utf-8").strip()
    return ""
