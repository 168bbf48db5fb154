"""The nodes beside the loaders: the prompt, the sheet of pictures, and what is known of a file."""

from __future__ import annotations

from typing import Any, ClassVar

from . import host, prompt
from .loaders import CATEGORY, LORA_TOOLTIP, TRIGGER_TOOLTIP, OfLoraFile


class ScribblePrompt:
    """Puts a subject into a template, behind the trigger words."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Puts a subject behind the adapter's trigger words: apple becomes 'a scribble of apple'."
    SEARCH_ALIASES: ClassVar[list[str]] = ["prompt template", "trigger words", "scribble", "text", "caption"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("The whole prompt: connect it to CLIP Text Encode.",)
    FUNCTION = "fill"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "subject": ("STRING", {"default": "apple", "dynamicPrompts": True, "tooltip":
                            "What to draw. {cat|dog} draws one of them at random."}),
                "template": ("STRING", {"default": prompt.TEMPLATE, "tooltip":
                             "The whole prompt, with {subject} and {trigger} where they go."}),
            },
            "optional": {
                "trigger_words": ("STRING", {"forceInput": True, "tooltip":
                                  f"From a Scribble loader. Unconnected, it is '{prompt.TRIGGER}'."}),
            },
        }  # fmt: skip

    def fill(self, subject: str, template: str, trigger_words: str = prompt.TRIGGER) -> tuple[str]:
        return (prompt.fill(template, subject, trigger_words),)


class ScribbleGrid:
    """One picture of many: a column for each picture list entry, a row for each picture of a batch."""

    CATEGORY = CATEGORY
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
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The decoded pictures of a sweep, one batch for each scale."}),
                "title": ("STRING", {"default": "", "tooltip": "Stands over the sheet, for example the prompt."}),
            },
            "optional": {
                "labels": ("STRING", {"forceInput": True, "tooltip": "What stands over the columns, from the sweep."}),
            },
        }  # fmt: skip

    def lay_out(self, images: list[Any], title: list[str], labels: list[str] | None = None) -> tuple[Any]:
        import numpy
        import torch

        from .grid import draw

        columns = [[_picture(picture) for picture in batch] for batch in images]
        sheet = draw(columns, labels or [], title=title[0].strip())
        return (torch.from_numpy(numpy.asarray(sheet, dtype=numpy.float32) / 255.0)[None],)


def _picture(image: Any) -> Any:
    """A float tensor (H, W, 1, 3 or 4 channels) in [0, 1] -> uint8 (H, W, 3), rounded down as the host's Save Image does.

    Transparency becomes white paper.
    """
    image = image.detach().cpu().float().clamp(0, 1)
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + (1 - image[..., 3:])
    return (image.expand(*image.shape[:2], 3) * 255).byte().numpy()


class ScribbleLoraInfo(OfLoraFile):
    """What is in a LoRA file, and is it sound?"""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Shows what is in a LoRA file: form, modules, rank, alpha, base, recommended scale, trigger words, hash; and whether "
        "it is sound. A broken file is described, not refused."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["lora metadata", "inspect lora", "lora hash", "check lora", "scribble"]
    RETURN_TYPES = ("STRING", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("text", "lora_tag", "hash", "trigger_words")
    OUTPUT_TOOLTIPS = (
        "Everything that is known, as aligned lines.",
        "What AUTOMATIC1111's prompt takes, as <lora:scribble:0.8>.",
        "The first 12 digits of the AutoV3 hash, by which model sites know the file.",
        TRIGGER_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "describe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"lora_name": (host.lora_names(), {"tooltip": LORA_TOOLTIP})}}

    def describe(self, lora_name: str) -> dict[str, Any]:
        from .report import info

        found = info(host.lora_path(lora_name), lora_name)
        return {"ui": {"text": [found.text]}, "result": tuple(found)}
