"""Chooses the device and number format of a run."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

import torch

from convert.errors import UsageError

MEASURED_SECONDS = 0.2


@dataclass(frozen=True)
class Compute:
    """device; base_dtype of the UNet's frozen weights; autocast dtype or None; scaled: fp16, so the loss is scaled."""

    device: torch.device
    base_dtype: torch.dtype
    autocast: torch.dtype | None
    scaled: bool

    def context(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast)


def choose(name: str, local_rank: int = 0) -> Compute:
    """`auto`, `cuda`, `cuda:1`, `mps` or `cpu`. Uses bf16 on a GPU, or fp16 with loss scaling if it lacks bf16; else float32.

    Raises:
        UsageError: this torch cannot use that device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA GPU: install a CUDA build from "
                         "pytorch.org (on Windows pip's own torch is CPU-only), or give --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: this torch sees no Apple GPU: give --device cpu")
    if kind not in ("cuda", "mps", "cpu") or not re.fullmatch(r"(cuda|cpu|mps)(:\d+)?", name):
        raise UsageError(f"--device {name}: expected auto, cuda, cuda:N, mps or cpu")
    if kind != "cuda":
        return Compute(torch.device(name), torch.float32, None, False)
    device = torch.device(name if ":" in name else f"cuda:{local_rank}")
    torch.cuda.set_device(device)
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return Compute(device, half, half, half == torch.float16)


def flops_per_second(compute: Compute) -> float:
    """The speed of a large matrix product on this device, in operations per second; takes a fraction of a second.

    On a CPU it uses process time, not wall-clock time, because other programs may be busy.
    """
    import time

    def now() -> float:
        return time.process_time() / torch.get_num_threads() if compute.device.type == "cpu" else time.perf_counter()

    side = 4096 if compute.device.type == "cuda" else 1024
    a = torch.randn(side, side, device=compute.device, dtype=compute.autocast or torch.float32)
    a @ a  # the first product loads the library
    synchronize(compute.device)
    products, start = 0, now()
    while (spent := now() - start) < MEASURED_SECONDS:  # a process clock may tick only every 15.6 ms
        a @ a
        synchronize(compute.device)
        products += 1
    return products * 2 * side**3 / spent


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
