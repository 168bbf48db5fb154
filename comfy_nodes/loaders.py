"""The two nodes that apply an adapter: at one scale, and at many."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from . import host, scales
from .errors import NodeError

CATEGORY = "Scribble LoRA"

SCALE_RANGE = {"min": -2.0, "max": 2.0, "step": 0.05, "round": 0.01, "display": "slider"}
"""0 is the base and 1 the full LoRA; beyond is for experiments."""

LORA_TOOLTIP = "A LoRA file of ComfyUI's models/loras folder, in any form: kohya, diffusers, peft or attention processors."
TRIGGER_TOOLTIP = "The words the adapter was trained with, from its card or metadata. Connect them to Scribble Prompt."
MODEL = ("MODEL", {"tooltip": "A Stable Diffusion 1.5 model, from the checkpoint loader."})
CLIP = ("CLIP", {"tooltip": "The checkpoint's text encoder; needed by adapters that have a part for it."})
"""Inputs that both loaders have."""


class OfLoraFile:
    """What every node with a `lora_name` has: a missing file is refused when queued, a replaced one is noticed."""

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: Any = None) -> bool | str:
        return lora_name is None or host.why_missing(lora_name) or True

    @classmethod
    def IS_CHANGED(cls, lora_name: Any = None, **_: Any) -> str:
        return host.fingerprint(lora_name)


class ScribbleLoraLoader(OfLoraFile):
    """Applies a LoRA of any form to MODEL and, where it has such a part, to CLIP."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Applies a Stable Diffusion 1.5 LoRA of any form, all of it, or says in one sentence why it cannot. Scale 0 hands "
        "the model on untouched, 1 is the full LoRA."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = [
        "lora", "load lora", "lora loader", "diffusers lora", "peft", "kohya", "scribble", "doodle", "adapter",
    ]  # fmt: skip
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "trigger_words")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA at this scale: connect it to the sampler.",
        "The text encoder with the LoRA's part for it, if it has one.",
        TRIGGER_TOOLTIP,
    )
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "lora_name": (host.lora_names(), {"tooltip": LORA_TOOLTIP}),
                "scale": ("FLOAT", {"default": 0.8, **SCALE_RANGE, "tooltip":
                          "How strong the LoRA is: 0 hands the model on untouched, 1 is the full LoRA. Picking another file "
                          "sets it to what that file recommends."}),
                "clip_scale": ("FLOAT", {"default": 0.8, **SCALE_RANGE, "tooltip":
                               "How strong the LoRA's text encoder part is, where it has one: 0 leaves it off."}),
            },
            "optional": {
                "clip": CLIP,
            },
        }  # fmt: skip

    def apply(self, model: Any, lora_name: str, scale: float, clip_scale: float, clip: Any = None) -> tuple[Any, Any, str]:
        for name, value in (("scale", scale), ("clip_scale", clip_scale)):
            if not math.isfinite(value):
                raise NodeError(f"{name}: is {value}; a number is needed, 0 for the base and 1 for the full LoRA")
        trigger = host.advice(lora_name).trigger_words
        if scale == 0 and (clip is None or clip_scale == 0):
            return model, clip, trigger
        adapter = host.load(lora_name)
        return host.with_unet(model, adapter, scale), host.with_text_encoder(clip, adapter, clip_scale), trigger


class ScribbleLoraSweep(OfLoraFile):
    """The same as the loader, once for each of many scales: what is connected behind it runs once for each."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "One model at many scales: the sampler and the decoder behind it run once for each, with the same noise. Scribble "
        "Grid lays the pictures out."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["xy plot", "lora strength", "compare scales", "lora", "scribble", "test lora"]
    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "labels", "trigger_words")
    OUTPUT_IS_LIST = (True, True, True, False)
    OUTPUT_TOOLTIPS = (
        "The model at each scale, one after the other: connect it to one sampler.",
        "The text encoder at each scale; only one where the LoRA has no part for it.",
        "'scale 0.25' and so on, for Scribble Grid.",
        TRIGGER_TOOLTIP,
    )
    FUNCTION = "sweep"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "lora_name": (host.lora_names(), {"tooltip": LORA_TOOLTIP}),
                "scales": ("STRING", {"default": "0, 0.25, 0.5, 0.75, 1", "tooltip":
                           "Numbers with commas between, or start:stop:step as in 0:1:0.25. Each is a whole sampling run. A "
                           "text encoder part gets the same scale."}),
            },
            "optional": {
                "clip": CLIP,
            },
        }  # fmt: skip

    def sweep(self, model: Any, lora_name: str, scales: str, clip: Any = None) -> tuple[list[Any], list[Any], list[str], str]:
        wanted = _parse(scales)
        adapter = host.load(lora_name)
        models = [host.with_unet(model, adapter, scale) for scale in wanted]
        # one CLIP for all: the prompt is then encoded once
        for_clip = wanted if adapter.text_encoder.shapes else [0.0]
        clips = [host.with_text_encoder(clip, adapter, scale) for scale in for_clip]
        return models, clips, [_label(scale) for scale in wanted], host.advice(lora_name).trigger_words


_parse, _label = scales.parse, scales.label
