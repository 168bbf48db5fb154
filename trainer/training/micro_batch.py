"""How many pictures to compute at once: as many as memory holds, found once and written down in the run folder.

The whole of an optimizer step's pictures at once is the fastest; parts of it give the same gradient up to rounding. A
resumed run takes the recorded number, so that it repeats the very bits of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convert.errors import JobError
from convert.files import write_json
from trainer.training.draws import Draw, draw_held_out

if TYPE_CHECKING:
    from trainer.training.loop import Training

FILE = "micro_batch.json"
MOST = 32
"""No larger: kernels are full by then."""
SHARE = 0.6
"""Of the memory that is free, activations may take this much; the rest is for gradients in flight and fragmentation."""


def settle(t: Training, wish: int) -> int:
    """The micro-batch of this run: `wish` (0: none), else the recorded one, else what fits. Writes it down."""
    whole = len(range(*t.processes.slice_of(t.recipe.batch * t.recipe.accumulation).indices(1 << 30)))
    recorded = _read(t.run / FILE)
    if wish:
        size = wish
    elif recorded.get("device") == _device_name(t.compute.device):
        size = int(recorded["micro_batch"])
    else:
        size = even(max(whole, 1), min(MOST, int(SHARE * _free(t.compute.device) / max(activation_bytes(t), 1))))
    t.micro_batch = t.processes.least(size, t.compute.device)
    record(t)
    return t.micro_batch


def record(t: Training) -> None:
    """Write the micro-batch into the run folder, for the next command that goes on with this run."""
    if t.processes.main:
        t.run.mkdir(parents=True, exist_ok=True)
        write_json(t.run / FILE, {"micro_batch": t.micro_batch, "device": _device_name(t.compute.device)})


def even(whole: int, limit: int) -> int:
    """The size, at most `limit` (at least 1), of the parts of `whole`: all equal where one not below half of `limit` makes
    them so, for one set of compiled kernels; else as equal as can be."""
    limit = min(max(1, limit), whole)
    divisor = max(size for size in range(1, limit + 1) if whole % size == 0)
    return divisor if 2 * divisor >= limit else math.ceil(whole / math.ceil(whole / limit))


def activation_bytes(t: Training) -> int:
    """What one more picture in a forward pass keeps for the backward pass."""
    return _kept(t, 2) - _kept(t, 1)


def _kept(t: Training, pictures: int) -> int:
    """Bytes that a forward pass of so many pictures keeps, each piece of memory counted once."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    one = draw_held_out(t.recipe, pictures=1, **t.shape)
    draw = Draw(*(getattr(one, name).repeat_interleave(pictures, 0) for name in one.__dataclass_fields__))
    with t.fused, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = t.objective.loss(t.unet, t.encoded, draw.to(t.compute.device))
    del loss  # alive until here, so that no address is used twice
    return sum(kept.values())


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    memory = psutil.virtual_memory()  # half of all: what other programs hold is not to decide the bits of a run …
    return min(memory.total // 2, memory.available)  # … unless there is really no room


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
