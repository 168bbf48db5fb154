"""Scribble LoRA Info."""

from __future__ import annotations

from typing import ClassVar

from .. import lora_files
from ..errors import reported
from ..types import InputTypes
from . import inputs


class ScribbleLoraInfo(inputs.LoraFileInput):
    """Shows the contents of a LoRA file and whether it is sound."""

    DISPLAY_NAME = "Scribble LoRA Info"
    CATEGORY = inputs.CATEGORY
    DESCRIPTION = (
        "Shows a LoRA file: its recommended scale, trigger words, picture, form, modules, rank, alpha, base and hash, and "
        "whether it is sound. A broken file is described, not refused."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["lora metadata", "inspect lora", "lora hash", "check lora", "scribble"]
    RETURN_TYPES = ("STRING", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("text", "lora_tag", "hash", "trigger_words")
    OUTPUT_TOOLTIPS = (
        "Everything known about the file, as aligned lines.",
        "The tag for AUTOMATIC1111's prompt, as <lora:scribble:0.8>.",
        "The first 12 digits of the AutoV3 hash, by which model sites know the file.",
        inputs.TRIGGER_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "describe"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the form that ComfyUI expects."""
        return {"required": {"lora_name": inputs.lora_name()}}

    @reported
    def describe(self, lora_name: str) -> dict[str, object]:
        """The text for the page, and the outputs. Raises `NodeError` only for a name that is not in the list."""
        from ..report import info

        found = info(lora_files.path_of(lora_name), lora_files.full_name(lora_name))
        return {"ui": {"text": [found.text]}, "result": tuple(found)}
