"""ComfyUI nodes that use a LoRA of any form. `convert` reads the files, ComfyUI computes the patched weights.

The nodes are registered with V1 mappings, which every ComfyUI version in use reads. The V3 schema exists only since
August 2025, and importing it slows down the start.

Importing this package loads neither torch nor any part of ComfyUI; each node imports its dependencies when it runs.
"""

from __future__ import annotations

from .nodes import NODES
from .routes import register

NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.DISPLAY_NAME for node in NODES}

WEB_DIRECTORY = "./comfy_nodes/web"
"""Relative to the repository's root, as ComfyUI expects."""

register()
