"""Which of torch's attention kernels a GPU uses, by its compute capability.

64 x 64 tokens at head width 40 are 85 % of SD1.5's attention at 512 px. torch prefers FlashAttention-2 everywhere; on
Hopper, Ada and Blackwell cuDNN's kernel is faster by published rates (1.7 to 2.3 times on Hopper), on Ampere it is
slower. Not measured here yet: `python -m trainer.benchmark` compares them on your card.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip
CHOICES = ("auto", *BACKENDS)
FIRST_BY_CAPABILITY = {(8, 9): "cudnn", (9, 0): "cudnn", (10, 0): "cudnn", (12, 0): "cudnn"}
"""Compute capabilities on which a kernel other than torch's first choice is tried first."""


def preferred(device: torch.device, wish: str = "auto") -> str:
    """The name of the kernel to try first on `device`; "" to keep torch's own order (a CPU, MPS, other cards)."""
    if wish != "auto":
        return wish
    if device.type != "cuda":
        return ""
    return FIRST_BY_CAPABILITY.get(torch.cuda.get_device_capability(device), "")


def attention_backend(device: torch.device, wish: str = "auto") -> AbstractContextManager[None]:
    """A context in which `wish`, or the card's kernel, is tried first and the others after it in torch's order."""
    first = preferred(device, wish)
    if not first:
        return nullcontext()
    others = [backend for name, backend in BACKENDS.items() if name != first]
    return sdpa_kernel([BACKENDS[first], *others], set_priority=True)
