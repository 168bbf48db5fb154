"""Inputs and outputs that several nodes have, and the checks of a `lora_name`."""

from __future__ import annotations

from .. import lora_files
from ..errors import NodeError
from ..scales import LIMIT

CATEGORY = "Scribble LoRA"

SCALE_RANGE = {"min": -LIMIT, "max": LIMIT, "step": 0.05, "round": 0.01, "display": "slider"}
"""0 is the base and 1 the full LoRA. The page's script ends the slider at -2 and 2."""

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
"""The last widget of every node that has it: ComfyUI saves values by position, so old workflows keep theirs."""


class Choices(list[str]):
    """The values of a combo that may also come from a text link: ComfyUI asks `"STRING" != <this list>` about a link."""

    def __ne__(self, other: object) -> bool:
        return other != "STRING" and list.__ne__(self, other)

    __hash__ = None  # as any list


def lora_name() -> tuple[object, ...]:
    """The input `lora_name`, with the files of this moment."""
    return Choices(lora_files.names()), {"tooltip": LORA_TOOLTIP}


class LoraFileInput:
    """For nodes with a `lora_name`: a missing file is refused when queued, a replaced one is noticed."""

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: object = None) -> bool | str:
        """True, or why the name is refused. None is a link, whose value is known only later."""
        try:
            return lora_name is None or bool(lora_files.full_name(lora_name))
        except NodeError as error:
            return str(error)

    @classmethod
    def IS_CHANGED(cls, lora_name: object = None, **_: object) -> str:
        """Another text if the file is another."""
        return lora_files.fingerprint(lora_name)
