"""How many pictures to compute at once: as many as memory holds, found once and written down in the run folder.

All of an optimizer step's pictures at once is the fastest; micro-batches give the same gradient up to rounding. A
resumed run takes the recorded number, so that it repeats an uninterrupted run bit by bit.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from convert.errors import JobError
from convert.files import write_json
from trainer.training.state import Training

FILE = "micro_batch.json"
LARGEST = 32
"""A GPU's kernels are full by then."""
SHARE = 0.6
"""Share of the free memory that activations may take; the rest is for gradients in flight and fragmentation."""


def choose_micro_batch(t: Training, wish: int) -> int:
    """The micro-batch of this run: `wish` (0: none), else the recorded one, else what fits. Records it."""
    rows = t.processes.slice_of(t.largest_step)
    whole = max(rows.stop - rows.start, 1)
    recorded = _read(t.run / FILE)
    if wish:
        size = min(wish, whole)
    elif recorded.get("device") == _device_name(t.compute.device):
        size = int(recorded["micro_batch"])
    else:
        fits = int(SHARE * free_bytes(t.compute.device) / max(activation_bytes(t), 1))
        size = equal_parts(whole, min(LARGEST, fits))
    size = t.processes.all_reduce_min(size, t.compute.device)
    record(t, size)
    return size


def record(t: Training, size: int) -> None:
    """Write the micro-batch into the run folder, for the command that resumes this run."""
    if t.processes.main:
        t.run.mkdir(parents=True, exist_ok=True)
        write_json(t.run / FILE, {"micro_batch": size, "device": _device_name(t.compute.device)})


def equal_parts(whole: int, limit: int) -> int:
    """The largest size up to `limit` that divides `whole`, so that one set of compiled kernels serves all micro-batches; if
    that is below half of `limit`, the size that makes the parts as equal as they can be."""
    limit = min(max(1, limit), whole)
    divisor = max(size for size in range(1, limit + 1) if whole % size == 0)
    return divisor if 2 * divisor >= limit else math.ceil(whole / math.ceil(whole / limit))


def activation_bytes(t: Training) -> int:
    """Bytes that a forward pass keeps for the backward pass, per picture."""
    return _kept(t, 2) - _kept(t, 1)


def _kept(t: Training, pictures: int) -> int:
    """Bytes that a forward pass of `pictures` pictures keeps, each storage counted once."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    one = replace(t.draw_held_out(t.encoded, 1), picture=torch.tensor([t.encoded.largest]))
    (one,) = one.micro_batches(t.encoded.alike(one.picture, one.dropped, one.choice), 1)
    draw = one.take(torch.zeros(pictures, dtype=torch.int64))
    with t.kernels, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = t.objective.loss(t.unet, t.encoded, draw.to(t.compute.device))
    del loss  # alive until here, so that no address is used twice
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that is free, on a CPU at most half of all."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    memory = psutil.virtual_memory()
    # half of all memory, so that other programs do not decide the bits of a run, unless less is left
    return min(memory.total // 2, memory.available)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {"device": stored["device"], "micro_batch": int(stored["micro_batch"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{file}: cannot be read ({error}): delete it, and the micro-batch is found again") from error
