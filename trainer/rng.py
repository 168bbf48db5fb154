"""The source of every random draw: a separate generator per purpose and step, keyed by the recipe's seed."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # data is inspected without torch
    import torch


class Stream(IntEnum):
    """Stored runs depend on these numbers: add new ones, never change one."""

    ORDER = 0  # of the pictures in an epoch
    STEP = 1  # noise, timesteps, mirror images of an optimizer step
    HELD_OUT = 2  # the same of the held-out loss
    FACTORS = 3  # the LoRA's start
    STARTING_NOISE = 4  # of pictures drawn
    TEXT_FACTORS = 5  # the start of the text encoder's LoRA
    CATEGORIES = 10
    ROWS = 11  # of a category's drawings
    OWN_HELD_OUT = 12  # own pictures kept from training
    CONTACT_SHEET = 13
    TAGS = 14  # orders of a caption's tags
    REGULARISATION = 15  # order of the pictures for it
    SEEN = 20  # categories that an evaluation draws
    UNSEEN = 21
    PROMPTS = 22  # the same of own pictures
    RESAMPLES = 30  # of an evaluation's intervals


def generator_of(*key: int) -> torch.Generator:
    """A CPU generator of its own for every `key`."""
    import torch

    low, high = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator().manual_seed((int(high) << 32 | int(low)) & (2**63 - 1))
