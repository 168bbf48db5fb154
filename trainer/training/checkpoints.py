"""Checkpoints of a run: the factors of every one, the optimizer's state of the newest two, each a folder made whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from convert.errors import JobError
from convert.files import flush_folder, write_json

FACTORS, OPTIMIZER, STEP = "factors.safetensors", "optimizer.safetensors", "step.json"
Named = Sequence[tuple[str, torch.nn.Parameter]]


def save(folder: Path, step: int, factors: Named, optimizer: torch.optim.AdamW, scaler: dict[str, Any]) -> Path:
    """Write `folder`/step-NNNNNN: factors, optimizer state, step, loss scaling. Then drop older optimizer states."""
    final = folder / f"step-{step:06d}"
    if final.exists():
        return final
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_file({name: p.detach().cpu().contiguous() for name, p in factors}, part / FACTORS)
        save_file(_state(factors, optimizer), part / OPTIMIZER)
    except SafetensorError as error:
        raise JobError(f"{final}: cannot be written ({error}): make room on this disk; the same command goes on from the "
                       "checkpoint before") from error
    write_json(part / STEP, {"step": step, "scaler": scaler})
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


def restore(folder: Path, factors: Named, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler) -> int:
    """Put the newest checkpoint's numbers back; returns the steps done, 0 without one. JobError where it is damaged."""
    found = resumable(folder)
    if not found:
        return 0
    newest = found[-1]
    try:
        stored, state = load_file(newest / FACTORS), load_file(newest / OPTIMIZER)
        noted = json.loads((newest / STEP).read_text())
        step, scaling = int(noted["step"]), noted.get("scaler")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{newest}: damaged ({error}): delete this folder to go on from the checkpoint before") from error
    from trainer.lora.adapter import load_factors

    load_factors(list(factors), stored, newest)
    for name, factor in factors:
        optimizer.state[factor] = {
            "step": state[f"{name}.step"], "exp_avg": state[f"{name}.exp_avg"].to(factor.device),
            "exp_avg_sq": state[f"{name}.exp_avg_sq"].to(factor.device)}
        if optimizer.defaults.get("fused"):
            optimizer.state[factor]["step"] = optimizer.state[factor]["step"].to(factor.device)
    if scaling:
        scaler.load_state_dict(scaling)
    return step


def _state(factors: Named, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.detach().cpu().contiguous()
            for name, factor in factors for key, value in optimizer.state[factor].items()}
