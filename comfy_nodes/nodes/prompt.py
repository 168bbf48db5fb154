"""Scribble Prompt."""

from __future__ import annotations

from typing import ClassVar

from ..errors import reported
from ..template import TEMPLATE, TRIGGER, fill
from ..types import InputTypes
from . import inputs


class ScribblePrompt:
    """Puts a subject into a template, after the trigger words."""

    DISPLAY_NAME = "Scribble Prompt"
    CATEGORY = inputs.CATEGORY
    DESCRIPTION = "Puts a subject after the LoRA's trigger words: apple becomes 'a scribble of apple'."
    SEARCH_ALIASES: ClassVar[list[str]] = ["prompt template", "trigger words", "scribble", "text", "caption"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("The whole prompt: connect it to CLIP Text Encode.",)
    FUNCTION = "fill"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the form that ComfyUI expects."""
        return {
            "required": {
                "subject": ("STRING", {"default": "apple", "dynamicPrompts": True, "tooltip":
                            "What to draw. {cat|dog} draws one of them at random."}),
                "template": ("STRING", {"default": TEMPLATE, "tooltip":
                             "The whole prompt, with {subject} and {trigger} where they go."}),
            },
            "optional": {
                "trigger_words": ("STRING", {"default": TRIGGER, "tooltip":
                                  "Type them, or connect them from a Scribble loader. If that loader is bypassed, its file's "
                                  "words are still used, so pictures with and without the LoRA have the same prompt."}),
            },
        }  # fmt: skip

    @reported
    def fill(self, subject: str, template: str, trigger_words: str = TRIGGER) -> tuple[str]:
        """The prompt. Raises `NodeError` if the template does not contain {subject}."""
        return (fill(template, subject, trigger_words),)
