"""Checkpoints of a run: the factors of every one, the optimizer's state of the newest two, each a folder made whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from convert.errors import JobError
from convert.files import flush_folder, write_json
from trainer.lora.adapter import load_factors
from trainer.training.state import Named, State

FACTORS, OPTIMIZER, STEP = "factors.safetensors", "optimizer.safetensors", "step.json"
OF_THE_DEVICE = {"params", "fused", "foreach", "capturable"}
"""Settings of an optimizer's groups that depend on the device, which a resumed run may have changed."""


def save(folder: Path, state: State) -> Path:
    """Write `folder`/step-NNNNNN: factors, optimizer state, step, loss scaling. Then drop older optimizer states."""
    final = folder / f"step-{state.step:06d}"
    if final.exists():
        return final
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors, rest = _optimizer_state(state.factors, state.optimizer)
    try:
        save_file({name: p.detach().cpu().contiguous() for name, p in state.factors}, part / FACTORS)
        save_file(tensors, part / OPTIMIZER)
    except SafetensorError as error:
        raise JobError(f"{final}: cannot be written ({error}): make room on this disk; the same command goes on from the "
                       "checkpoint before") from error
    write_json(part / STEP, {"step": state.step, "scaler": state.scaler.state_dict(), "optimizer": rest})
    for file in (FACTORS, OPTIMIZER):
        with open(part / file, "rb+") as stream:
            os.fsync(stream.fileno())
    os.replace(part, final)
    flush_folder(folder)
    for older in resumable(folder)[:-2]:
        (older / OPTIMIZER).unlink()
    return final


def resumable(folder: Path) -> list[Path]:
    """Checkpoints that a run can go on from, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{OPTIMIZER}"))


def restore(folder: Path, state: State) -> int:
    """Put the newest checkpoint into `state`; returns the steps done, 0 without one. JobError where it is damaged."""
    found = resumable(folder)
    if not found:
        return 0
    newest = found[-1]
    try:
        factors, tensors = load_file(newest / FACTORS), load_file(newest / OPTIMIZER)
        noted = json.loads((newest / STEP).read_text(encoding="utf-8"))
        step, scaling, rest = int(noted["step"]), noted.get("scaler"), noted.get("optimizer", {})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{newest}: damaged ({error}): delete this folder to go on from the checkpoint before") from error
    load_factors(list(state.factors), factors, newest)
    _load_optimizer(state, tensors, rest)
    if scaling:
        state.scaler.load_state_dict(scaling)
    state.step = step
    return step


def _optimizer_state(factors: Named, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Any optimizer's state: tensors as `<factor>.<key>`, and plain values (with the groups' settings) for JSON."""
    stored = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, of_factor in stored["state"].items():
        name = factors[index][0]
        for key, value in of_factor.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}.{key}"] = value.detach().cpu().clone().contiguous()
            else:
                values.setdefault(name, {})[key] = value
    return tensors, {"values": values, "groups": stored["param_groups"]}


def _load_optimizer(state: State, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
    """The inverse of `_optimizer_state`."""
    index = {name: number for number, (name, _) in enumerate(state.factors)}
    of_factors: dict[int, dict[str, Any]] = {index[name]: dict(values) for name, values in rest.get("values", {}).items()}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(".")
        of_factors.setdefault(index[name], {})[key] = tensor
    current = state.optimizer.state_dict()["param_groups"]
    stored = rest.get("groups") or current
    groups = [now | {key: value for key, value in then.items() if key not in OF_THE_DEVICE}
              for now, then in zip(current, stored, strict=True)]
    state.optimizer.load_state_dict({"state": of_factors, "param_groups": groups})
