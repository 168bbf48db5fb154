"""Number formats and versions of encodings, and conversion of models to other formats."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch

from trainer.base.models import Model

M = TypeVar("M", bound=Model)


def storage_dtype(device: torch.device) -> torch.dtype:
    """fp16 for a GPU (131 KB per picture with its mirror image at 512 x 512), fp32 for the CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


def versions(device: torch.device) -> dict[str, str]:
    """Everything besides the models and their input that affects an encoding's bits."""
    import diffusers
    import PIL
    import transformers

    return {"pillow": PIL.__version__, "device": device.type, "kept": str(storage_dtype(device)), "torch": torch.__version__,
            "diffusers": diffusers.__version__, "transformers": transformers.__version__, "format": "1"}  # fmt: skip


def moved(model: M, device: torch.device, dtype: torch.dtype) -> M:
    """`model` itself if it is already on `device` in `dtype`, else a copy that is."""
    here = next(model.parameters())
    if here.device == device and here.dtype == dtype:
        return model
    return copy.deepcopy(model).to(device, dtype)
