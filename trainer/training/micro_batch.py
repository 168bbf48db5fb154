"""How many pictures to compute at once: as many as memory holds, found once and recorded in every checkpoint.

All of an optimizer step's pictures at once is the fastest; micro-batches give the same gradient up to rounding. A
resumed run takes the checkpoint's number, so that it repeats an uninterrupted run bit by bit.
"""

from __future__ import annotations

import math
from dataclasses import replace

import psutil
import torch
from torch import Tensor

from trainer.runs.record import Record
from trainer.training.state import Training

LARGEST = 32
"""A GPU's kernels are full by then."""
SHARE = 0.6
"""Share of the free memory that activations may take; the rest is for gradients in flight and fragmentation."""


def choose_micro_batch(t: Training, wish: int, record: Record | None = None) -> int:
    """The micro-batch of this run: `wish` (0: none), else that of the checkpoint's `record`, else what fits."""
    rows = t.processes.slice_of(t.largest_step)
    whole = max(rows.stop - rows.start, 1)
    if wish:
        size = min(wish, whole)
    elif record and record["device"] == device_name(t.compute.device):
        size = min(record["micro_batch"], whole)
    else:
        fits = int(SHARE * free_bytes(t.compute.device) / max(activation_bytes(t), 1))
        size = equal_parts(whole, min(LARGEST, fits))
    return t.processes.all_reduce_min(size, t.compute.device)


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


def device_name(device: torch.device) -> str:
    """The device that a micro-batch was chosen for: another one may hold more or fewer."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
