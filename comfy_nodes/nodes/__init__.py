"""The nodes, one file each. A new one is added here: both of ComfyUI's mappings are made from this list."""

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
"""In the order of the node menu. The name of a class is the node's id, which stands in saved workflows: it never changes."""
