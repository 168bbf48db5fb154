"""Checkpoints of a run, each a folder written atomically. All keep the LoRA's factors, the newest two the optimizer's state.

`step.json` records the step, the run and the sha256 of the other files. If a file does not match, the checkpoint is damaged,
and the run resumes from the one before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from convert.errors import Damaged, FileError, JobError
from convert.files import flush_folder
from trainer.lora.adapter import load_factors
from trainer.recipe import apart_from_length
from trainer.runs.record import NO_CHECKSUM, Record, file_sha256, read_record, write_record
from trainer.terminal import Say
from trainer.training.state import Named, State

FACTORS, OPTIMIZER, STEP = "factors.safetensors", "optimizer.safetensors", "step.json"
OF_THE_DEVICE = {"params", "fused", "foreach", "capturable"}
"""Settings of an optimizer's groups that depend on the device, which a resumed run may have changed."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified. It is copied into memory, so its files may be deleted."""

    record: Record
    factors: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


def save(folder: Path, state: State, run: Record, device: str) -> Path:
    """Write `folder`/step-NNNNNN: factors, optimizer state, and the record. Then drop older optimizer states.

    run: the recipe, data and base, as in recipe.json. device: the one for which the micro-batch was chosen.
    """
    final = folder / f"step-{state.step:06d}"
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _fill(part, state, run, device)
        shutil.rmtree(final, ignore_errors=True)  # exists only if it was damaged and this run resumed from an earlier one
        os.replace(part, final)
    except (OSError, SafetensorError, JobError) as error:
        shutil.rmtree(part, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise JobError(f"{final}: cannot be written ({why}): free some disk space; the same command then continues from the "
                       "checkpoint before") from error
    flush_folder(folder)
    for older in [path for path in resumable(folder) if path.name <= final.name][:-2]:
        (older / OPTIMIZER).unlink()
    return final


def _fill(part: Path, state: State, run: Record, device: str) -> None:
    """Write the files of a checkpoint into `part`, a new folder."""
    tensors, rest = _optimizer_state(state.factors, state.optimizer)
    save_file({name: p.detach().cpu().contiguous() for name, p in state.factors}, part / FACTORS)
    save_file(tensors, part / OPTIMIZER)
    for name in (FACTORS, OPTIMIZER):
        with open(part / name, "rb+") as stream:
            os.fsync(stream.fileno())
    write_record(part / STEP, {"step": state.step, "scaler": state.scaler.state_dict(), "optimizer": rest, "run": dict(run),
                               "micro_batch": state.micro_batch, "device": device,
                               "files": {name: file_sha256(part / name) for name in (FACTORS, OPTIMIZER)}})


def resumable(folder: Path) -> list[Path]:
    """Checkpoints with an optimizer state, oldest first; not yet verified."""
    return sorted(path.parent for path in folder.glob(f"step-*/{OPTIMIZER}"))


def restore(folder: Path, state: State, run: Record, say: Say) -> Record | None:
    """Load the newest sound checkpoint of `run` into `state`; returns its record, None if there is none.

    say: receives a line for every damaged one.

    Raises:
        JobError: a file cannot be read, or all checkpoints are from an earlier version without checksums.
    """
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)  # left by a killed command; this one holds the run folder's lock
    damaged: list[Damaged] = []
    for place in reversed(resumable(folder)):
        try:
            checkpoint = read(place, run)
        except Damaged as error:
            damaged.append(error)
            continue
        for each in damaged:
            say(f"{each}; resuming from {place.name}")
        load_factors(list(state.factors), checkpoint.factors, place)
        _load_optimizer(state, checkpoint)
        if checkpoint.record["scaler"]:
            state.scaler.load_state_dict(checkpoint.record["scaler"])
        state.step = checkpoint.record["step"]
        return checkpoint.record
    if damaged and damaged[0].problem == NO_CHECKSUM:
        raise JobError(f"{damaged[0].path}: was saved without checksums, by an earlier version of this program: continue with "
                       "that version, or give --run another folder to start again")
    for each in damaged:
        say(f"{each}; there is no other checkpoint to resume from: training starts at its first step")
    return None


def read(place: Path, run: Record | None = None) -> Checkpoint:
    """Read and verify a checkpoint. `run`: the run it must belong to; None for any.

    Raises:
        Damaged: its files have changed since they were written.
        FileError: a file cannot be read.
    """
    record = _read_record(place)
    if run is not None and _without_length(record["run"]) != _without_length(run):
        raise Damaged(place, "belongs to another run")
    factors, optimizer = (_read_tensors(place / name, record["files"][name]) for name in (FACTORS, OPTIMIZER))
    return Checkpoint(record, factors, optimizer)


def _without_length(run: Record) -> Record:
    return {**run, "recipe": apart_from_length(run.get("recipe", {}))}


def read_factors(place: Path) -> dict[str, torch.Tensor]:
    """The factors of a checkpoint, by peft's names, verified. Raises as `read`."""
    return _read_tensors(place / FACTORS, _read_record(place)["files"][FACTORS])


def _read_record(place: Path) -> Record:
    record = read_record(place / STEP)
    if record is None:
        raise Damaged(place / STEP, "is missing")
    if place.name != f"step-{record['step']:06d}":
        raise Damaged(place / STEP, f"is of step {record['step']}")
    return record


def _read_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(path, "is missing") from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged(path, "its bytes do not match its checksum")
    return load(data)  # not memory-mapped: Windows would refuse to delete it


def _optimizer_state(factors: Named, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], Record]:
    """Any optimizer's state: tensors as `<factor>.<key>`, and plain values (with the groups' settings) for JSON."""
    stored = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Record] = {}
    for index, of_factor in stored["state"].items():
        name = factors[index][0]
        for key, value in of_factor.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}.{key}"] = value.detach().cpu().contiguous()
            else:
                values.setdefault(name, {})[key] = value
    return tensors, {"values": values, "groups": stored["param_groups"]}


def _load_optimizer(state: State, checkpoint: Checkpoint) -> None:
    """The inverse of `_optimizer_state`."""
    rest = checkpoint.record["optimizer"]
    index = {name: number for number, (name, _) in enumerate(state.factors)}
    of_factors: dict[int, Record] = {index[name]: dict(values) for name, values in rest["values"].items()}
    for full, tensor in checkpoint.optimizer.items():
        name, _, key = full.rpartition(".")
        of_factors.setdefault(index[name], {})[key] = tensor
    current = state.optimizer.state_dict()["param_groups"]
    groups = [now | {key: value for key, value in then.items() if key not in OF_THE_DEVICE}
              for now, then in zip(current, rest["groups"], strict=True)]
    state.optimizer.load_state_dict({"state": of_factors, "param_groups": groups})
