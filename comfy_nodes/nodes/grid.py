"""Scribble Grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..errors import reported
from ..types import InputTypes
from . import inputs

if TYPE_CHECKING:
    from torch import Tensor


class ScribbleGrid:
    """Lays pictures out on one sheet: a column for each batch in the list, a row for each picture of a batch."""

    DISPLAY_NAME = "Scribble Grid"
    CATEGORY = inputs.CATEGORY
    DESCRIPTION = (
        "Lays pictures out as one labelled sheet: columns are the scales of a sweep, rows are the entries of the latent batch."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["contact sheet", "xy plot", "image grid", "compare", "scribble", "montage"]
    INPUT_IS_LIST = True
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("sheet",)
    OUTPUT_TOOLTIPS = ("One picture: connect it to Save Image or Preview Image.",)
    FUNCTION = "lay_out"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the form that ComfyUI expects."""
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The decoded pictures of a sweep, one batch for each scale."}),
                "title": ("STRING", {"default": "", "tooltip": "The text over the sheet, for example the prompt."}),
            },
            "optional": {
                "labels": ("STRING", {"forceInput": True, "tooltip": "The text over each column, from the sweep."}),
            },
        }

    @reported
    def lay_out(self, images: Sequence[Tensor], title: Sequence[str], labels: Sequence[str] | None = None) -> tuple[Tensor]:
        """IMAGE batches, float32 (B, H, W, 1 to 4) in [0, 1] -> one sheet (1, H', W', 3). Raises `NodeError`."""
        import numpy
        import torch

        from ..sheet import as_uint8, draw

        columns = [[as_uint8(picture) for picture in batch] for batch in images]
        sheet = draw(columns, labels or [], title=title[0].strip())
        return (torch.from_numpy(numpy.asarray(sheet, dtype=numpy.float32) / 255.0)[None],)
