"""Retries work in parts of half the size when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from convert.errors import JobError

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA raises OutOfMemoryError; MPS and the CPU's allocator raise a RuntimeError with such a message."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def halving(work: Callable[[int], T], size: int, *, what: str, advice: str) -> tuple[T, int]:
    """`work(size)`, with `size` halved for as long as memory runs out; the result and the size that fitted.

    Raises:
        JobError: it runs out at size 1: "out of memory on <what>: <advice>".
    """
    while True:
        try:
            return work(size), size
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size <= 1:
                raise JobError(f"out of memory on {what}: {advice}") from error
            size = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
