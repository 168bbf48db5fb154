"""Chooses the micro-batch: as many pictures as fit into memory, determined once and recorded in every checkpoint.

Computing all pictures of an optimizer step at once is fastest; micro-batches give the same gradient up to rounding. A
resumed run uses the checkpoint's number, so that it equals an uninterrupted run bit for bit.
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
"""Larger micro-batches would not make a GPU faster."""
SHARE = 0.6
"""Share of the free memory for activations; the rest is for temporary gradients and fragmentation."""


def choose_micro_batch(t: Training, wish: int, record: Record | None = None, measured: int | None = None) -> int:
    """The micro-batch of this run: `wish` (0: automatic), else that of the checkpoint's `record`, else what fits.

    measured: `activation_bytes`, if they are known already.
    """
    rows = t.processes.slice_of(t.largest_step)
    whole = max(rows.stop - rows.start, 1)
    if wish:
        size = min(wish, whole)
    elif record and record["device"] == device_name(t.compute.device):
        size = min(record["micro_batch"], whole)
    else:
        fits = int(SHARE * free_bytes(t.compute.device) / max(measured or activation_bytes(t), 1))
        size = equal_parts(whole, min(LARGEST, fits))
    return t.processes.all_reduce_min(size, t.compute.device)


def equal_parts(whole: int, limit: int) -> int:
    """The largest size up to `limit` that divides `whole`, so that one set of compiled kernels works for all micro-batches;
    if that is below half of `limit`, the size that makes the parts as equal as possible."""
    limit = min(max(1, limit), whole)
    divisor = max(size for size in range(1, limit + 1) if whole % size == 0)
    return divisor if 2 * divisor >= limit else math.ceil(whole / math.ceil(whole / limit))


def activation_bytes(t: Training) -> int:
    """Bytes that a forward pass keeps for the backward pass, per picture."""
    return _kept(t, 2) - _kept(t, 1)


def _kept(t: Training, pictures: int) -> int:
    """Bytes that a forward pass of `pictures` pictures keeps for the backward pass, each storage counted once."""
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
    del loss  # kept until here, so that no storage address is reused
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Free memory in bytes; on a CPU at most half of the total."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    memory = psutil.virtual_memory()
    # half of the total, so that a run does not depend on other programs unless even less is free
    return min(memory.total // 2, memory.available)


def device_name(device: torch.device) -> str:
    """The name of the device for which a micro-batch is chosen; others may have more or less memory."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
