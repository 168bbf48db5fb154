"""Scribble LoRA Stack."""

from __future__ import annotations

from typing import ClassVar

from .. import host, lora_files, notices, scales
from ..errors import NodeError, reported
from ..template import joined
from ..types import Clip, InputTypes, LoraStack, Model
from . import inputs

ROWS = 4
"""LoRAs in one node; chain nodes for more. The number must never change, because ComfyUI saves values by position."""

NONE = "None"
"""The choice of an empty row, as other packs spell it."""

DEFAULT_SCALE = 0.8


class ScribbleLoraStack:
    """Applies several LoRAs of any form in one node, and outputs them as the list that other packs use."""

    DISPLAY_NAME = "Scribble LoRA Stack"
    CATEGORY = inputs.CATEGORY
    DESCRIPTION = (
        "Up to four LoRAs of any form with their scales. Applies them to MODEL and CLIP if those are connected, and outputs "
        "the list as LORA_STACK, for more of these nodes and for other packs."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["lora stack", "lora stacker", "multiple loras", "several loras", "lora", "scribble"]
    RETURN_TYPES = ("MODEL", "CLIP", "LORA_STACK", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "LORA_STACK", "trigger_words")
    OUTPUT_TOOLTIPS = (
        "The model with every LoRA of the list: connect it to the sampler.",
        "The text encoder with every part for it.",
        "The list, for a node that applies it: connect either this or MODEL, or the LoRAs are applied twice.",
        "The trigger words of all of them, with commas between. Connect them to Scribble Prompt.",
    )
    FUNCTION = "stack"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the form that ComfyUI expects."""
        names = [NONE, *lora_files.names()]
        scale = {"default": DEFAULT_SCALE, **inputs.SCALE_RANGE,
                 "tooltip": "How strong this LoRA is, its text encoder part included. 0 leaves it off."}  # fmt: skip
        rows: dict[str, tuple[object, ...]] = {}
        for row in range(1, ROWS + 1):
            rows[f"lora_{row}"] = (names, {"default": NONE, "tooltip": inputs.LORA_TOOLTIP})
            rows[f"scale_{row}"] = ("FLOAT", scale)
        return {
            "required": {},
            "optional": {
                "model": inputs.MODEL,
                "clip": inputs.CLIP,
                "lora_stack": ("LORA_STACK", {"tooltip": "A list to put these after, from this node or another pack's."}),
                **rows,
                "use_recommended_scale": inputs.USE_RECOMMENDED_SCALE,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, lora_1: object = None, lora_2: object = None, lora_3: object = None, lora_4: object = None
    ) -> bool:
        """Accepts all names, because the host's own check is strict about slashes and case. `stack` rejects a missing one."""
        return True

    @classmethod
    def IS_CHANGED(cls, **given: object) -> str:
        """Changes if one of the files does."""
        return lora_files.fingerprint(*(given.get(f"lora_{row}") for row in range(1, ROWS + 1)))

    @reported
    def stack(
        self,
        model: Model | None = None,
        clip: Clip | None = None,
        lora_stack: LoraStack | None = None,
        use_recommended_scale: bool = False,
        **rows: str | float,
    ) -> tuple[Model | None, Clip | None, LoraStack, str] | notices.WithText:
        """`rows` are lora_1, scale_1 and so on; rows without a name are skipped. Raises `NodeError`."""
        whole = [*(lora_stack or []), *_own(rows, use_recommended_scale)]
        words = joined(lora_files.advice(name).trigger_words for name, *_ in whole)
        if model is None and clip is None:
            return None, None, whole, words
        told = notices.Told()
        for name, scale, clip_scale in whole:
            adapter = lora_files.load(name)
            if model is not None:
                model = host.with_unet(model, adapter, scales.checked(f"{name}: scale", scale), told)
            clip = host.with_text_encoder(clip, adapter, scales.checked(f"{name}: clip_scale", clip_scale))
        return told.beside((model, clip, whole, words))


def _own(rows: dict[str, str | float], use_recommended_scale: bool) -> LoraStack:
    """The rows of one node that are not empty."""
    own: LoraStack = []
    for row in range(1, ROWS + 1):
        given = rows.get(f"lora_{row}", NONE)
        if given == NONE:
            continue
        try:
            name = lora_files.full_name(given)
        except NodeError as error:
            raise NodeError(f"lora_{row}: {error}") from None
        recommended = lora_files.advice(name).scale if use_recommended_scale else None
        scale, clip_scale = scales.used(float(rows.get(f"scale_{row}", DEFAULT_SCALE)), None, recommended)
        if scale:
            own.append((name, scale, clip_scale))
    return own
