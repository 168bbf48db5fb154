"""Scribble LoRA Sweep."""

from __future__ import annotations

from typing import ClassVar

from .. import host, lora_files, notices
from ..errors import reported
from ..scales import label, parse
from ..types import Clip, InputTypes, Model
from . import inputs


class ScribbleLoraSweep(inputs.LoraFileInput):
    """Loads one LoRA at many scales: every downstream node runs once for each."""

    DISPLAY_NAME = "Scribble LoRA Sweep"
    CATEGORY = inputs.CATEGORY
    DESCRIPTION = (
        "One model at many scales: the sampler and decoder connected to it run once for each, with the same noise. Scribble "
        "Grid lays the pictures out."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["xy plot", "lora strength", "compare scales", "lora", "scribble", "test lora"]
    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "labels", "trigger_words")
    OUTPUT_IS_LIST = (True, True, True, False)
    OUTPUT_TOOLTIPS = (
        "The model at each scale, one after the other: connect it to one sampler.",
        "The text encoder at each scale; only one if the LoRA has no part for it.",
        "'scale 0.25' and so on, for Scribble Grid.",
        inputs.TRIGGER_TOOLTIP,
    )
    FUNCTION = "sweep"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the form that ComfyUI expects."""
        return {
            "required": {
                "model": inputs.MODEL,
                "lora_name": inputs.lora_name(),
                "scales": ("STRING", {"default": "0, 0.25, 0.5, 0.75, 1", "tooltip":
                           "Numbers with commas between, or start:stop:step as in 0:1:0.25. Each is a whole sampling run. A "
                           "text encoder part gets the same scale."}),
            },
            "optional": {"clip": inputs.CLIP},
        }  # fmt: skip

    @reported
    def sweep(
        self, model: Model, lora_name: str, scales: str, clip: Clip | None = None
    ) -> tuple[list[Model], list[Clip | None], list[str], str] | notices.WithText:
        """Lists with one entry for each scale. Raises `NodeError`."""
        wanted = parse(scales)
        adapter = lora_files.load(lora_name)
        told = notices.Told()
        models = [host.with_unet(model, adapter, scale, told) for scale in wanted]
        # one CLIP for all: the prompt is then encoded once
        for_clip = wanted if adapter.text_encoder.shapes else [0.0]
        clips = [host.with_text_encoder(clip, adapter, scale) for scale in for_clip]
        labels = [label(scale) for scale in wanted]
        return told.beside((models, clips, labels, lora_files.advice(lora_name).trigger_words))
