"""When to use kernels written for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

M = TypeVar("M", bound=torch.nn.Module)

WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""oneDNN's kernels are others there: see docs/PERFORMANCE.md for what each was measured to do."""


def use_cpu_kernels(x: Tensor) -> bool:
    """True on a CPU in float32, outside torch.compile. A GPU, half precision and the compiler use torch's own operators."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def cpu_kernel(ours: Callable[[M, Tensor], Tensor]) -> Callable[[M, Tensor], Tensor]:
    """`ours` where CPU kernels are to be used, elsewhere the module's own forward."""

    @wraps(ours)
    def forward(module: M, x: Tensor) -> Tensor:
        result: Tensor = ours(module, x) if use_cpu_kernels(x) else type(module).forward(module, x)
        return result

    return forward
