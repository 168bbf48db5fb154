"""Turns changes into a LoRA that can be written, and measures the error of each module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy

from .. import keys
from ..api import Report, write_lora
from ..dtypes import CASTS
from ..errors import UsageError
from ..lora import Lora, LoraModule
from ..sd15 import Module, modules
from ..tensors import Tensor
from ..words import Note, counted
from .arrays import WEIGHTS, decode, encode, to_array, to_tensor
from .change import Change, Product
from .low_rank import Limit, distance, norm, reduced

ERROR_KEY = "scribble_relative_error"
"""Metadata key: the norm of the error divided by the norm of the whole change."""


@dataclass
class Losses:
    """The error of each module's written change, in the Frobenius norm."""

    norms: dict[str, float] = field(default_factory=dict)
    """module -> norm of the whole change"""
    errors: dict[str, float] = field(default_factory=dict)
    """module -> norm of the error"""
    ranks: dict[str, int] = field(default_factory=dict)
    """module -> rank written"""

    @property
    def total(self) -> float:
        """The overall relative error."""
        whole = math.sqrt(sum(value**2 for value in self.norms.values()))
        return math.sqrt(sum(value**2 for value in self.errors.values())) / whole if whole else 0.0

    def relative(self, module: str) -> float:
        """The relative error of one module."""
        return self.errors[module] / self.norms[module] if self.norms[module] else 0.0

    def copied(self, module: LoraModule) -> None:
        """Count a module that is copied without an error."""
        product = Product(*(to_array(module.parts[part]).reshape(module.parts[part].shape[0], -1) for part in ("up", "down")))
        self.ranks[module.module.name] = module.rank
        self.norms[module.module.name] = norm(product) * abs(module.scale)
        self.errors[module.module.name] = 0.0

    def to_json(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        return {
            "relative_error": self.total,
            "modules": {name: {"rank": self.ranks[name], "relative_error": self.relative(name)} for name in self.norms},
        }

    def rows(self) -> list[tuple[str, str]]:
        """Rows for a table: the ranks, the overall error, and the worst modules' errors."""
        if not self.ranks:
            return []
        rows = [
            ("rank", ", ".join(map(str, sorted(set(self.ranks.values()))))),
            ("error", f"{self.total:.3g} of the whole change, in {counted(len(self.ranks), 'module')}"),
        ]
        worst = sorted(self.norms, key=self.relative, reverse=True)[: 3 if self.total > 1e-6 else 0]
        return rows + [("worst", f"{self.relative(name):.3g} in {name}, rank {self.ranks[name]}") for name in worst]


def lora_module(module: Module, shape: tuple[int, ...], change: Change, limit: Limit, dtype: str, losses: Losses) -> LoraModule:
    """The best LoRA for `change` within `limit`, as tensors of `dtype` with alpha = rank. Its error is added to `losses`.

    Raises `UsageError` if the change is a full matrix and there is no limit.
    """
    if not isinstance(change, Product) and limit.is_none:
        raise UsageError(f"--rank or --keep: one is needed, because the change of {module.name} is not of low rank")
    product = reduced(change, limit)
    rank = product.rank
    kernel = shape[2:]
    parts = {
        "down": to_tensor(product.down.reshape(rank, *shape[1:]), dtype, module.name),
        "up": to_tensor(product.up.reshape(-1, rank, *(1 for _ in kernel)), dtype, module.name),
    }
    losses.ranks[module.name] = rank
    losses.norms[module.name] = norm(change)
    losses.errors[module.name] = distance(change, _rounded(product, dtype))
    return LoraModule(module, shape, rank, float(rank), parts)


def _rounded(product: Product, dtype: str) -> Product:
    """The product as read back from the file, so that the error includes rounding."""
    if dtype == "F16":
        return Product(*(factor.astype(numpy.float16).astype(numpy.float32) for factor in product))
    if dtype == "BF16":
        return Product(*(decode(encode(factor, dtype, ""), dtype, factor.shape) for factor in product))
    return product


def stored_dtype(wanted: str | None, source: str) -> str:
    """The safetensors dtype to write: `--dtype`, or the source's, or F16 if the source's is too small for weights."""
    if wanted is not None:
        if wanted not in CASTS:
            raise UsageError(f"--dtype {wanted}: allowed are {', '.join(CASTS)}")
        return CASTS[wanted]
    return source if source in WEIGHTS else "F16"


def write_result(
    path: Path, target: Path, to: str, form: str, base: str, found: Mapping[str, LoraModule], losses: Losses,
    metadata: Mapping[str, str], notes: tuple[Note, ...] = (), embeddings: Mapping[str, Tensor] | None = None,
) -> Report:  # fmt: skip
    """Write computed modules as a LoRA. `path` and `form` describe the source."""
    ordered = {name: found[name] for name in modules() if name in found}
    size = sum(tensor.size for module in ordered.values() for tensor in module.parts.values())
    full = {**metadata, ERROR_KEY: f"{losses.total:.6g}"}
    lora = Lora(path, form, base, ordered, full, "the computation", size, notes, embeddings or {})
    return replace(write_lora(lora, target, to=to), computed_from=full[keys.COMPUTED_FROM])


def own_metadata(metadata: Mapping[str, str], source: str) -> dict[str, str]:
    """The metadata of a network that still holds for a LoRA computed from it, and the source's name."""
    stale = (keys.NETWORK_MODULE, keys.NETWORK_ARGS, keys.NETWORK_DIM, keys.NETWORK_ALPHA, ERROR_KEY)
    kept = {key: value for key, value in metadata.items() if key not in stale and key != keys.OUTPUT_NAME}
    return {**kept, keys.COMPUTED_FROM: source}
