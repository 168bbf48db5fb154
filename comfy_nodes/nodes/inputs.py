"""Inputs and outputs that several nodes have, and the checks of a `lora_name`."""

from __future__ import annotations

from .. import lora_files
from ..errors import NodeError
from ..scales import LIMIT

CATEGORY = "Scribble LoRA"

SCALE_RANGE = {"min": -LIMIT, "max": LIMIT, "step": 0.05, "round": 0.01, "display": "slider"}
"""0 is the base and 1 the full LoRA. The page's script limits the slider to -2 … 2."""

LORA_TOOLTIP = "A LoRA file in ComfyUI's models/loras folder, in any form: kohya, diffusers, peft or attention processors."
TRIGGER_TOOLTIP = "The words the LoRA was trained with, from its card or metadata. Connect them to Scribble Prompt."
SCALE_USED_TOOLTIP = "The scale that was used, for example for a file name."

MODEL = ("MODEL", {"tooltip": "A Stable Diffusion 1.5 model, from the checkpoint loader."})
CLIP = ("CLIP", {"tooltip": "The checkpoint's text encoder; needed by LoRAs that have a part for it."})
SCALE = ("FLOAT", {"default": 0.8, **SCALE_RANGE, "tooltip":
                   "How strong the LoRA is: 0 leaves the model as it is, 1 is the full LoRA."})  # fmt: skip
CLIP_SCALE = ("FLOAT", {"default": 0.8, **SCALE_RANGE, "tooltip":
                        "How strong the LoRA's text encoder part is, if it has one: 0 leaves it off."})  # fmt: skip
USE_RECOMMENDED_SCALE = ("BOOLEAN", {"default": False, "tooltip":
                                     "On: the scale that the file's card or metadata recommends replaces the sliders. "
                                     "A file without a recommendation uses the sliders."})  # fmt: skip
"""Always a node's last widget: ComfyUI saves values by position, so older workflows still load correctly."""


class Choices(list[str]):
    """The choices of a combo that also accepts a text link: ComfyUI checks a link with `"STRING" != <this list>`."""

    def __ne__(self, other: object) -> bool:
        return other != "STRING" and list.__ne__(self, other)

    __hash__ = None  # like any list


def lora_name() -> tuple[object, ...]:
    """The input `lora_name`, with the current files."""
    return Choices(lora_files.names()), {"tooltip": LORA_TOOLTIP}


class LoraFileInput:
    """Base of nodes with a `lora_name`: rejects a missing file when queued, and detects a replaced one."""

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: object = None) -> bool | str:
        """True, or why the name is rejected. None is a link, whose value is not known yet."""
        try:
            return lora_name is None or bool(lora_files.full_name(lora_name))
        except NodeError as error:
            return str(error)

    @classmethod
    def IS_CHANGED(cls, lora_name: object = None, **_: object) -> str:
        """Changes if the file does."""
        return lora_files.fingerprint(lora_name)
