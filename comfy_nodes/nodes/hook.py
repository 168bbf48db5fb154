"""Scribble LoRA Hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .. import lora_files, scales
from ..errors import NodeError, reported
from ..types import Hooks, InputTypes
from . import inputs

if TYPE_CHECKING:
    from ..adapter import Adapter


def hooks_of(adapter: Adapter, scale: float, clip_scale: float, previous: Hooks | None) -> Hooks:
    """HOOKS: `previous` and one that applies the adapter while its conditioning is sampled. Raises `NodeError`."""
    try:
        import comfy.hooks
    except ModuleNotFoundError:
        raise NodeError("Scribble LoRA Hook needs a ComfyUI with hooks (December 2024 or later): update ComfyUI") from None
    from ..weight_hook import AdapterHook

    group: Hooks = comfy.hooks.HookGroup()
    group.add(AdapterHook.of(adapter, scale, clip_scale))
    return group if previous is None else previous.clone_and_combine(group)


class ScribbleLoraHook(inputs.LoraFileInput):
    """A LoRA of any form as a hook: for a part of the steps, or a part of the picture."""

    DISPLAY_NAME = "Scribble LoRA Hook"
    CATEGORY = inputs.CATEGORY
    DESCRIPTION = (
        "A LoRA of any form as ComfyUI's HOOKS: Set Hook Keyframes schedules its scale over the steps, and a mask on its "
        "conditioning keeps it to a part of the picture. (Create Hook LoRA silently leaves out the UNet part of other forms.)"
    )
    SEARCH_ALIASES: ClassVar[list[str]] = [
        "lora hook", "create hook lora", "schedule lora", "lora mask", "regional lora", "scribble",
    ]  # fmt: skip
    RETURN_TYPES = ("HOOKS", "STRING", "FLOAT")
    RETURN_NAMES = ("HOOKS", "trigger_words", "scale")
    OUTPUT_TOOLTIPS = (
        "Connect it to Set CLIP Hooks or Cond Set Props, or to Set Hook Keyframes first.",
        inputs.TRIGGER_TOOLTIP,
        inputs.SCALE_USED_TOOLTIP,
    )
    FUNCTION = "create"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the form that ComfyUI expects."""
        return {
            "required": {"lora_name": inputs.lora_name(), "scale": inputs.SCALE},
            "optional": {
                "clip_scale": inputs.CLIP_SCALE,
                "prev_hooks": ("HOOKS", {"tooltip": "Hooks that are kept beside this one."}),
                "use_recommended_scale": inputs.USE_RECOMMENDED_SCALE,
            },
        }

    @reported
    def create(
        self,
        lora_name: str,
        scale: float,
        clip_scale: float | None = None,
        prev_hooks: Hooks | None = None,
        use_recommended_scale: bool = False,
    ) -> tuple[Hooks, str, float]:
        """`clip_scale` None is the same as `scale`. Raises `NodeError`."""
        advice = lora_files.advice(lora_name)
        scale, clip_scale = scales.used(scale, clip_scale, advice.scale if use_recommended_scale else None)
        hooks = hooks_of(lora_files.load(lora_name), scale, clip_scale, prev_hooks)
        return hooks, advice.trigger_words, scale
