"""A file with any network of Stable Diffusion 1.5 (LoRA, LoHa, LoKr, OFT, …), read for arithmetic on its changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..contents import Contents, open_contents
from ..errors import DoesNotFit, NotFinite
from ..lora import FULL_PARTS, LoraModule, commonest
from ..metadata import merged
from ..read import alpha_of, base_of, notes_of, notes_of_alpha
from ..sd15 import Module, modules
from ..shapes import WrongShape, canonical_parts, implied_shape
from ..tensors import Tensor
from ..words import Note
from .arrays import Array, all_finite, to_array

KINDS = {
    "hada_w1_a": "LoHa", "lokr_w1": "LoKr", "lokr_w1_a": "LoKr", "oft_blocks": "OFT", "a1": "GLoRA", "on_input": "IA3",
    "down": "LoRA",
}  # fmt: skip
"""A part that only one kind of network has -> that kind."""

SCALED = ("LoHa", "LoKr", "GLoRA")
"""The kinds, besides LoRA, whose change is multiplied by alpha / rank."""

DIFFERENCE = "difference"
"""The kind of a module that has only `.diff` and the like."""


@dataclass(frozen=True)
class NetworkModule:
    """The change of one module, in the network's own form."""

    path: Path
    """for messages"""
    module: Module
    kind: str
    """of `KINDS`, or `DIFFERENCE`"""
    shape: tuple[int, ...]
    """shape of the changed weight"""
    alpha: float | None
    """None if the file does not store it"""
    parts: Mapping[str, Tensor]
    """part name (see `names`) -> tensor"""

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The parts as float32; alpha is not among them. Raises `NotFinite`."""
        arrays = {part: to_array(tensor) for part, tensor in self.parts.items() if part != "alpha"}
        bad = [part for part, array in arrays.items() if not all_finite(array)]
        if bad:
            raise NotFinite(self.path, [f"{self.module.name} {part}" for part in bad])
        return arrays

    @property
    def is_dora(self) -> bool:
        return "dora_scale" in self.parts or "magnitude" in self.parts


@dataclass(frozen=True)
class Network:
    """A file or adapter folder that was read."""

    path: Path
    form: str
    base: str
    modules: Mapping[str, NetworkModule]
    metadata: Mapping[str, str]
    embeddings: Mapping[str, Tensor]
    size: int
    notes: tuple[Note, ...]

    @property
    def kinds(self) -> str:
        """The kinds in words: "LoHa and LoRA"."""
        return " and ".join(sorted({module.kind for module in self.modules.values()}))

    @property
    def dtype(self) -> str:
        """The most common dtype of its tensors."""
        tensors = (tensor for module in self.modules.values() for tensor in module.parts.values())
        return commonest(tensor.dtype for tensor in tensors)


def read_network(path: Path | str, *, alpha: float | None = None) -> Network:
    """Read a network of any known kind. Raises `FileError` as `read` does."""
    contents = open_contents(path, pickles=True)
    origins: Counter[str] = Counter()
    found = {name: _module(contents, modules()[name], parts, alpha, origins) for name, parts in contents.groups.items()}
    metadata = merged(contents.metadata, {})
    shapes = {name: module.shape for name, module in found.items()}
    base = base_of(contents.path, shapes, metadata)
    notes = (
        *notes_of_alpha(origins, alpha, metadata),
        *notes_of(contents, {name: (shape, 0) for name, shape in shapes.items()}, base),
    )
    return Network(
        contents.path, contents.form, base, found, metadata, contents.embeddings, contents.size, notes
    )  # fmt: skip


def _module(
    contents: Contents, module: Module, parts: Mapping[str, Tensor], alpha: float | None, origins: Counter[str]
) -> NetworkModule:
    """One module; `origins` counts the sources of the alphas."""
    kind = next((kind for part, kind in KINDS.items() if part in parts), DIFFERENCE)
    if kind == "OFT" and len(parts["oft_blocks"].shape) == 4:
        kind = "BOFT"
    if kind not in ("LoRA", DIFFERENCE):
        scaled = kind in SCALED and alpha is not None
        value, origin = alpha_of(contents, module, 1, alpha) if scaled or "alpha" in parts else (None, "the rank")
        origins[origin] += kind in SCALED or "alpha" in parts
        return NetworkModule(contents.path, module, kind, module.shape, value, parts)
    try:
        shape, rank = implied_shape(module, parts)
    except WrongShape as error:
        raise DoesNotFit(contents.path, module.name, f"{module.name}: {error}") from error
    value, origin = alpha_of(contents, module, rank, alpha) if rank else (None, "")
    origins[origin] += 1
    return NetworkModule(contents.path, module, kind, shape, value, canonical_parts(parts, shape, rank))


def as_lora_module(module: NetworkModule) -> LoraModule:
    """A module of kind "LoRA" or `DIFFERENCE` as a `LoraModule`, with the same tensors."""
    rank = module.parts["down"].shape[0] if "down" in module.parts else 0
    return LoraModule(module.module, module.shape, rank, module.alpha if module.alpha is not None else 0.0, module.parts)


def differences(module: NetworkModule) -> dict[str, Tensor]:
    """The parts for biases and norms, which do not change a layer's weight matrix."""
    kept = FULL_PARTS if module.module.is_norm else ("diff_b", "b_norm")
    return {part: tensor for part, tensor in module.parts.items() if part in kept}
