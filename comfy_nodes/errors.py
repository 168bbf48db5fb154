"""What a node says when it cannot work: one sentence, which ComfyUI shows in its error dialog."""

from __future__ import annotations


class NodeError(ValueError):
    """The message names the file or input, says what is wrong and what to do."""

    __module__ = "scribble_lora"  # ComfyUI shows the type's full name, which else is the path of this folder
