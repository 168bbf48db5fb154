"""Reads every form of a Stable Diffusion 1.5 LoRA, writes every form of it. Standard library only.

`convert_file(source, target, to="kohya")` converts; `convert_bytes(source)` gives the same file in memory;
`read(source)` gives a `Lora` (form, base, modules, rank, alpha, metadata); `set_metadata(path, mapping)` rewrites a
header in place.
"""

from .api import Report, convert_bytes, convert_file, set_metadata
from .errors import JobError, UsageError
from .lora import Lora, LoraModule
from .read import read

__all__ = [
    "JobError", "Lora", "LoraModule", "Report", "UsageError", "convert_bytes", "convert_file", "read", "set_metadata",
]  # fmt: skip
