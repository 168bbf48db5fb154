"""ComfyUI nodes that use a LoRA of any form. Thin: reading is `convert`'s, the weights' arithmetic is ComfyUI's.

The nodes are registered by V1 mappings. Every ComfyUI in use reads them, old and new; the V3 schema exists only in
versions since August 2025, its import costs time at start, and a pack that has mappings is never asked for a V3
entry point. Node ids stand in people's saved workflows: they never change.

Importing this loads neither torch nor any part of ComfyUI; each node imports what it needs when it runs.
"""

from __future__ import annotations

from .companions import ScribbleGrid, ScribbleLoraInfo, ScribblePrompt
from .loaders import ScribbleLoraLoader, ScribbleLoraSweep
from .routes import register

NODE_CLASS_MAPPINGS = {
    "ScribbleLoraLoader": ScribbleLoraLoader,
    "ScribblePrompt": ScribblePrompt,
    "ScribbleLoraSweep": ScribbleLoraSweep,
    "ScribbleGrid": ScribbleGrid,
    "ScribbleLoraInfo": ScribbleLoraInfo,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "ScribbleLoraLoader": "Scribble LoRA Loader",
    "ScribblePrompt": "Scribble Prompt",
    "ScribbleLoraSweep": "Scribble LoRA Sweep",
    "ScribbleGrid": "Scribble Grid",
    "ScribbleLoraInfo": "Scribble LoRA Info",
}

WEB_DIRECTORY = "./comfy_nodes/web"
"""From the repository's root, where ComfyUI takes it from."""

register()
