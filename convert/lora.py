"""The types `Lora` and `LoraModule`: which modules of Stable Diffusion are patched, with which factors and scale.

Shapes: a module's weight is (out, in) or (out, in, k, k); `down` is (rank, in) or (rank, in, k, k), `up` is (out, rank)
or (out, rank, 1, 1), and the change is (alpha / rank) · up · down. Tensors stay in their file; only scalars are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .sd15 import Module, fits
from .tensors import Tensor
from .words import Note

T = TypeVar("T")

SD15 = "sd_v1"
"""Kohya's `ss_base_model_version` for Stable Diffusion 1.x."""

FULL_PARTS = ("diff", "diff_b", "w_norm", "b_norm")
"""Parts that are full differences instead of factors."""


@dataclass(frozen=True)
class LoraModule:
    """The adapter of one module."""

    module: Module
    shape: tuple[int, ...]
    """shape of the patched weight: SD1.5's, or the one implied by the factors for another base"""
    rank: int
    """0 if there are only full differences (`FULL_PARTS`)"""
    alpha: float
    """exact in float32; the effective scale is alpha / rank"""
    parts: Mapping[str, Tensor]
    """part name (see `names`; alpha is not among them) -> tensor, in the shape that kohya writes"""

    @property
    def scale(self) -> float:
        """The factor of up · down at LoRA strength 1."""
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def dora(self) -> str | None:
        """None without DoRA; "peft", a magnitude per output row in a part `magnitude`; "rows" and "columns", LyCORIS's
        part `dora_scale`, per output row (out, 1, …) or per input column (1, in, …).
        """
        if "magnitude" in self.parts:
            return "peft"
        if "dora_scale" not in self.parts:
            return None
        return "rows" if self.parts["dora_scale"].shape[0] == self.shape[0] else "columns"


@dataclass(frozen=True)
class Lora:
    """A file or adapter folder that was read, with every key checked against its base."""

    path: Path
    form: str
    """the form of the source, in words: "kohya", "diffusers attention processors", …"""
    base: str
    """`SD15`, or the name of another base in the file's metadata"""
    modules: Mapping[str, LoraModule]
    """by diffusers name, in the order of the network"""
    metadata: Mapping[str, str]
    """the header's `__metadata__`, with the caller's changes"""
    alpha_from: str
    """the source of alpha, in words"""
    size: int
    """bytes on disk"""
    notes: tuple[Note, ...] = ()
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    """key (`bundle_emb.<token>.<vector>`) -> vectors of a textual inversion that OneTrainer bundled"""

    @property
    def factors(self) -> list[LoraModule]:
        """The modules that have low-rank factors."""
        return [module for module in self.modules.values() if module.rank]

    @property
    def rank(self) -> int:
        """The most common rank, 0 without factors."""
        return commonest(module.rank for module in self.factors) if self.factors else 0

    @property
    def alpha(self) -> float:
        """The most common alpha, 0 without factors."""
        return commonest(module.alpha for module in self.factors) if self.factors else 0.0

    @property
    def dtypes(self) -> list[str]:
        """Every dtype among the tensors, the most common first."""
        tensors = (tensor for module in self.modules.values() for tensor in module.parts.values())
        return [dtype for dtype, _ in Counter(tensor.dtype for tensor in tensors).most_common()]

    @property
    def fits_sd15(self) -> bool:
        """Whether every module has Stable Diffusion 1.5's shape, regardless of the base's name."""
        return all(fits(module.module, module.shape) for module in self.modules.values())

    @property
    def uses_dora(self) -> bool:
        """Whether any module has a DoRA magnitude."""
        return any(module.dora for module in self.modules.values())

    def patched(self, scope: str) -> int:
        """How many of a network's `sd15.patchable` modules it patches."""
        return sum(not module.module.is_norm for module in self.in_scope(scope))

    def in_scope(self, scope: str) -> list[LoraModule]:
        """The modules of the UNet or of the text encoder (`sd15.UNET`, `sd15.TEXT_ENCODER`)."""
        return [module for module in self.modules.values() if module.module.scope == scope]


def base_in_words(base: str) -> str:
    """A `Lora.base` for a table."""
    return "Stable Diffusion 1.x" if base == SD15 else f"{base} (not Stable Diffusion 1.5)"


def commonest(values: Iterable[T]) -> T:
    """The most frequent value, the first of several. Raises `ValueError` for no values."""
    counts = Counter(values)
    return max(counts, key=counts.__getitem__)  # `Counter.most_common` would import heapq
