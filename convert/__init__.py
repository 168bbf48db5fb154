"""Reads every form of a Stable Diffusion 1.5 LoRA, writes every form of it. Standard library only."""

from .errors import JobError, UsageError

__all__ = ["JobError", "UsageError"]
