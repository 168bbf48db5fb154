"""Reads every form of a Stable Diffusion 1.5 LoRA, writes every form of it. Standard library only.

    convert_file("in.safetensors", "out.safetensors", to="kohya")  ->  Report
    convert_bytes("in.safetensors")                                ->  the same file as bytes
    read("in.safetensors")                                         ->  Lora: form, base, modules, rank, alpha, metadata
    set_metadata("out.safetensors", {"modelspec.title": "…"})      ->  the metadata as written
"""

from .api import Report, convert_bytes, convert_file, set_metadata
from .errors import JobError, UsageError
from .lora import Lora, LoraModule
from .read import read

__all__ = [
    "JobError", "Lora", "LoraModule", "Report", "UsageError", "convert_bytes", "convert_file", "read", "set_metadata",
]  # fmt: skip
