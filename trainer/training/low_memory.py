"""Gradient checkpointing if memory is short: activations are recomputed in the backward pass instead of stored.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". The numbers are the same; a step takes about a third longer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from trainer.memory import is_out_of_memory
from trainer.terminal import Say
from trainer.training.micro_batch import SHARE, activation_bytes, free_bytes
from trainer.training.state import Training

CHOICES = ("auto", "on", "off")


class Choice(NamedTuple):
    """Whether checkpointing is on, the same in all processes."""

    on: bool
    measured: int | None
    """activation bytes per picture as they were measured, if they are still valid"""


def choose_checkpointing(t: Training, wish: str, say: Say) -> Choice:
    """Turn gradient checkpointing on for the UNet if `wish` is on, or auto and memory is too small for one picture.

    say: receives a line if it was turned on automatically.
    """
    measured = _measure(t) if wish == "auto" else None
    needed = wish == "on" or (wish == "auto" and (measured is None or measured > SHARE * free_bytes(t.compute.device)))
    on = not t.processes.all_reduce_min(int(not needed), t.compute.device)
    if on:
        t.unet.enable_gradient_checkpointing()
    if on and wish == "auto":
        say("memory is too small for a picture's activations: they are recomputed (--gradient-checkpointing off avoids that)")
    return Choice(on, None if on else measured)


def _measure(t: Training) -> int | None:
    """Activation bytes per picture; None if memory runs out."""
    try:
        return activation_bytes(t)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if t.compute.device.type == "cuda":
        torch.cuda.empty_cache()
    return None
