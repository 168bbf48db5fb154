"""What torch passes from the forward to the backward pass of an autograd.Function, as a type."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """A function may keep other things in it under names of its own."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
