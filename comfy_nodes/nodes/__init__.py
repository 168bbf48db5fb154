"""The nodes, one file each. Add a new node here: both of ComfyUI's mappings are built from this list."""

from __future__ import annotations

from .grid import ScribbleGrid
from .hook import ScribbleLoraHook
from .info import ScribbleLoraInfo
from .loader import ScribbleLoraLoader
from .prompt import ScribblePrompt
from .stack import ScribbleLoraStack
from .sweep import ScribbleLoraSweep

NODES = (
    ScribbleLoraLoader,
    ScribblePrompt,
    ScribbleLoraSweep,
    ScribbleGrid,
    ScribbleLoraInfo,
    ScribbleLoraHook,
    ScribbleLoraStack,
)
"""In the order of the node menu. The class name is the node's id in saved workflows, so it must never change."""
