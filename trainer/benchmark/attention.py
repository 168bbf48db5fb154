"""Times torch's attention kernels on SD1.5's largest self-attention, forward and backward."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional
from torch.nn.attention import sdpa_kernel

from trainer.benchmark import measure as clock
from trainer.kernels.attention_backend import BACKENDS
from trainer.training.devices import Compute

HEADS, WIDTH = 8, 40
"""SD1.5's first level, which has 85 % of attention's operations at 512 px."""


def race_attention(compute: Compute, *, pictures: int, tokens: int, rounds: int) -> dict[str, float]:
    """Seconds (on a CPU, CPU-seconds) of one forward and backward pass with each kernel that works here."""
    dtype = compute.autocast or torch.float32
    qkv = [torch.randn(pictures, HEADS, tokens, WIDTH, device=compute.device, dtype=dtype, requires_grad=True)
           for _ in range(3)]
    steps = {name: partial(_step, name, qkv) for name in BACKENDS if _works(name, qkv)}
    timings = clock.race(steps, rounds, compute.device)
    return {name: timing.cpu_seconds if compute.device.type == "cpu" else timing.seconds for name, timing in timings.items()}


def _step(name: str, qkv: list[torch.Tensor]) -> None:
    with sdpa_kernel(BACKENDS[name]):
        q, k, v = qkv
        functional.scaled_dot_product_attention(q, k, v).sum().backward()


def _works(name: str, qkv: list[torch.Tensor]) -> bool:
    try:
        _step(name, qkv)
    except RuntimeError:  # "No available kernel", or a math kernel that needs more memory than there is
        return False
    return True
