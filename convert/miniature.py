"""Recognises the project's miniature, which has Stable Diffusion 1.5's names and shapes, and the LoRAs trained on it.

The fingerprint is the bias of the UNet's output convolution: four trained numbers that widening does not change and that
every host has in memory. Retrained weights have new numbers: `OUT_BIAS` belongs to the weights that ship.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import dtypes
from .container import open_container
from .errors import JobError

OUT_BIAS: tuple[float, float, float, float] = (
    0.0014867782592773438, -0.0016298294067382812, -0.00015866756439208984, -0.001750946044921875,
)  # fmt: skip
"""`model.diffusion_model.out.2.bias` of the checkpoint, `conv_out.bias` in diffusers; float16 numbers."""

OUT_BIAS_KEY = "model.diffusion_model.out.2.bias"

TOLERANCE = 2**-7
"""Relative tolerance of each number: a bfloat16 copy is within 2**-9."""

KEY, MINIATURE = "scribble_base", "miniature"
"""Metadata of a LoRA trained on the miniature. For hosts it is a LoRA of Stable Diffusion 1.5."""

FILES = ("miniature.safetensors", "scribble-miniature.safetensors")
"""The checkpoint's file name in the docs and in install.py. Other trainers write it as `ss_sd_model_name`."""

SIDE, LARGEST = 128, 256
"""Sides in pixels of the pictures it draws best, and of the largest it has learned. Web UIs start at 512."""

EARLIER = "scribble_miniature"
"""`ss_base_model_version` of LoRAs of an earlier miniature, which hosts cannot load."""

EARLIER_IS_GONE = ("was trained on an earlier miniature, which this project no longer has: train it again with "
                   "python -m trainer --demo")  # fmt: skip
"""Worded to follow the file's name."""


_OF_IT = ("was trained on Scribble LoRA's miniature, but another checkpoint is loaded, so it will not draw its subject: "
          "load the miniature (python install.py --demo installs it)")
_ON_IT = ("was not trained on Scribble LoRA's miniature, which is the loaded checkpoint, so it will not draw its subject: "
          "load the checkpoint that it was trained on")


def is_miniature(bias: Iterable[float]) -> bool:
    """Whether this is the bias of the miniature's output convolution, in float32, float16 or bfloat16."""
    numbers = tuple(bias)
    return len(numbers) == len(OUT_BIAS) and all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(numbers, OUT_BIAS))


def is_miniature_file(checkpoint: Path) -> bool:
    """Whether this file is the miniature's checkpoint. False if it cannot be read."""
    try:
        bias = open_container(checkpoint).tensors.get(OUT_BIAS_KEY)
        if bias is None or bias.shape != (len(OUT_BIAS),) or bias.dtype not in dtypes.CASTS.values():
            return False
        return is_miniature(dtypes.decode(bias.read(), bias.dtype))
    except JobError:
        return False


def is_of_miniature(metadata: Mapping[str, str]) -> bool:
    """Whether a LoRA was trained on the miniature, by our own metadata key or the checkpoint's name."""
    return metadata.get(KEY) == MINIATURE or metadata.get("ss_sd_model_name") in FILES


def too_large(width: int, height: int) -> str:
    """The warning about pictures of a size that the loaded miniature has not learned; "" for others."""
    if max(width, height) <= LARGEST:
        return ""
    return (f"the loaded checkpoint is Scribble LoRA's miniature, which draws pictures of {SIDE} x {SIDE}: "
            f"at {width} x {height} a thing is repeated all over the picture")


def notice(*, of_miniature: bool, on_miniature: bool) -> str:
    """The warning about a LoRA on a checkpoint whose shapes it fits but that it was not trained on; "" for the right one.

    Worded to follow the LoRA's name. The LoRA is applied anyway, because the user may want that.
    """
    return "" if of_miniature == on_miniature else _OF_IT if of_miniature else _ON_IT
