"""Gradient checkpointing if memory is short: activations are computed again in the backward pass instead of kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". The numbers are the same; a step takes about a third longer.
"""

from __future__ import annotations

import torch

from trainer.memory import is_out_of_memory
from trainer.terminal import Say
from trainer.training.micro_batch import SHARE, activation_bytes, free_bytes
from trainer.training.state import Training

CHOICES = ("auto", "on", "off")


def choose_checkpointing(t: Training, wish: str, say: Say) -> bool:
    """Turn gradient checkpointing on for the UNet if `wish` is on, or auto and memory does not hold one picture without.

    Returns whether it is on, the same in all processes. `say`: gets a line if memory decided it.
    """
    needed = wish == "on" or (wish == "auto" and not _fits(t))
    on = not t.processes.all_reduce_min(int(not needed), t.compute.device)
    if on:
        t.unet.enable_gradient_checkpointing()
    if on and wish == "auto":
        say("memory does not hold a picture's activations: they are computed twice (--gradient-checkpointing off: try without)")
    return on


def _fits(t: Training) -> bool:
    try:
        return activation_bytes(t) <= SHARE * free_bytes(t.compute.device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if t.compute.device.type == "cuda":
        torch.cuda.empty_cache()
    return False
