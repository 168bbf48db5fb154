"""ComfyUI nodes that use a LoRA of any form. Thin: reading is `convert`'s, the arithmetic of the weights is ComfyUI's.

The nodes are registered by V1 mappings. Every ComfyUI in use reads them, old and new; the V3 schema exists only in
versions since August 2025 and its import costs time at start.

Importing this loads neither torch nor any part of ComfyUI; each node imports what it needs when it runs.
"""

from __future__ import annotations

from .nodes import NODES
from .routes import register

NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.DISPLAY_NAME for node in NODES}

WEB_DIRECTORY = "./comfy_nodes/web"
"""From the repository's root, where ComfyUI looks for it."""

register()
