"""Recognises the project's miniature, a Stable Diffusion 1.5 by every name and shape, and the LoRAs trained on it.

The fingerprint is the bias of the UNet's output convolution: four numbers that training sets, that widening leaves as they
are, and that every host holds. Retrained weights bring new numbers: `OUT_BIAS` belongs to the weights that ship.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import dtypes
from .container import open_container
from .errors import JobError

OUT_BIAS: tuple[float, float, float, float] = (
    -9.268522262573242e-05, -0.0030994415283203125, 0.0025482177734375, -0.004001617431640625,
)  # fmt: skip
"""`model.diffusion_model.out.2.bias` of the checkpoint, `conv_out.bias` in diffusers; float16 numbers."""

OUT_BIAS_KEY = "model.diffusion_model.out.2.bias"

TOLERANCE = 2**-7
"""Relative, of each number: a bfloat16 copy is within 2**-9."""

KEY, MINIATURE = "scribble_base", "miniature"
"""The metadata by which a LoRA says that it was trained on the miniature; for hosts it is one of Stable Diffusion 1.5."""

FILES = ("miniature.safetensors", "scribble-miniature.safetensors")
"""What the checkpoint is called in the docs and by install.py: other trainers write its name as `ss_sd_model_name`."""

EARLIER = "scribble_miniature"
"""`ss_base_model_version` of LoRAs of an earlier miniature, which no host could load."""

EARLIER_IS_GONE = ("was trained on an earlier miniature, which this project no longer has: train it again with "
                   "python -m trainer --demo")  # fmt: skip
"""To be read after the file's name."""


_OF_IT = ("was trained on Scribble LoRA's miniature, and the loaded checkpoint is another one: it will not draw what it "
          "learnt; load the miniature (python install.py --demo places it)")
_ON_IT = ("was not trained on Scribble LoRA's miniature, which is the loaded checkpoint: it will not draw what it learnt; "
          "load the checkpoint that it was trained on")


def is_miniature(bias: Iterable[float]) -> bool:
    """Whether this is the bias of the miniature's output convolution, in float32, float16 or bfloat16."""
    numbers = tuple(bias)
    return len(numbers) == len(OUT_BIAS) and all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(numbers, OUT_BIAS))


def is_miniature_file(checkpoint: Path) -> bool:
    """Whether this file is the miniature's checkpoint. False for one that cannot be read."""
    try:
        bias = open_container(checkpoint).tensors.get(OUT_BIAS_KEY)
        if bias is None or bias.shape != (len(OUT_BIAS),) or bias.dtype not in dtypes.CASTS.values():
            return False
        return is_miniature(dtypes.decode(bias.read(), bias.dtype))
    except JobError:
        return False


def is_of_miniature(metadata: Mapping[str, str]) -> bool:
    """Whether a LoRA's metadata says that it was trained on the miniature: our own key, or the checkpoint's name."""
    return metadata.get(KEY) == MINIATURE or metadata.get("ss_sd_model_name") in FILES


def notice(*, of_miniature: bool, on_miniature: bool) -> str:
    """What to tell a user who applies a LoRA to the wrong one of two checkpoints that it fits by its shapes; "" if it is right.

    To be read after the LoRA's name. The LoRA is applied all the same: it may be what the user wants to see.
    """
    return "" if of_miniature == on_miniature else _OF_IT if of_miniature else _ON_IT
