"""Scribble LoRA Loader."""

from __future__ import annotations

from typing import ClassVar

from .. import host, lora_files, notices, scales
from ..errors import reported
from ..types import Clip, InputTypes, Model
from . import inputs


class ScribbleLoraLoader(inputs.LoraFileInput):
    """Applies a LoRA of any form to MODEL and, if it has such a part, to CLIP."""

    DISPLAY_NAME = "Scribble LoRA Loader"
    CATEGORY = inputs.CATEGORY
    DESCRIPTION = (
        "Applies a Stable Diffusion 1.5 LoRA of any form completely, or fails with one sentence that explains why. Scale 0 "
        "leaves the model unchanged, 1 is the full LoRA."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = [
        "lora", "load lora", "lora loader", "diffusers lora", "peft", "kohya", "scribble", "doodle", "adapter",
    ]  # fmt: skip
    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "FLOAT")
    RETURN_NAMES = ("MODEL", "CLIP", "trigger_words", "scale")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA at this scale: connect it to the sampler.",
        "The text encoder with the LoRA's part for it, if it has one.",
        inputs.TRIGGER_TOOLTIP,
        inputs.SCALE_USED_TOOLTIP,
    )
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the form that ComfyUI expects."""
        return {
            "required": {"model": inputs.MODEL, "lora_name": inputs.lora_name(), "scale": inputs.SCALE},
            "optional": {
                "clip_scale": inputs.CLIP_SCALE,
                "clip": inputs.CLIP,
                "use_recommended_scale": inputs.USE_RECOMMENDED_SCALE,
            },
        }

    @reported
    def apply(
        self,
        model: Model,
        lora_name: str,
        scale: float,
        clip_scale: float | None = None,
        clip: Clip | None = None,
        use_recommended_scale: bool = False,
    ) -> tuple[Model, Clip | None, str, float] | notices.WithText:
        """`clip_scale` None is the same as `scale`. Raises `NodeError`."""
        advice = lora_files.advice(lora_name)
        scale, clip_scale = scales.used(scale, clip_scale, advice.scale if use_recommended_scale else None)
        if scale == 0 and (clip is None or clip_scale == 0):
            return model, clip, advice.trigger_words, scale
        adapter = lora_files.load(lora_name)
        told = notices.Told()
        patched = host.with_unet(model, adapter, scale, told)
        encoder = host.with_text_encoder(clip, adapter, clip_scale)
        return told.beside((patched, encoder, advice.trigger_words, scale))
