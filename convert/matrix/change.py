"""ΔW of every kind of network, as a product of two small matrices if possible, else as the full matrix.

Shapes: a weight is (out, in) or (out, in, k, k); here it is a matrix (out, n) with n = in · k · k. Formulas: LoRA (arXiv
2106.09685, section 4.1), LoHa (FedPara, 2108.06098, proposition 1), LoKr, GLoRA, IA3, OFT and BOFT as LyCORIS defines
them (2309.14859), DoRA (2402.09353, equation 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy

from ..errors import DoesNotFit
from .arrays import Array
from .network import DIFFERENCE, NetworkModule

NEEDS_BASE = ("OFT", "BOFT", "IA3", "GLoRA")
"""Kinds whose change depends on the weight itself, as every DoRA's does too."""


class Product(NamedTuple):
    """A matrix up · down."""

    up: Array
    """(out, r)"""
    down: Array
    """(r, n)"""

    @property
    def rank(self) -> int:
        """Columns of `up`: the rank, or more."""
        return int(self.up.shape[1])

    def matrix(self) -> Array:
        return self.up @ self.down


Change = Product | Array
"""A change of one weight: a product, or a matrix (out, n)."""


def needs_base(module: NetworkModule) -> bool:
    """Whether `change` needs the weight."""
    return module.kind in NEEDS_BASE or module.is_dora


def change(module: NetworkModule, weight: Array | None = None) -> Change:
    """ΔW at full strength. `weight`, in the module's shape, is required if `needs_base`.

    Raises `DoesNotFit` if the parts do not fit together or do not fit the layer.
    """
    try:
        plain = _plain(module, weight)
        if isinstance(plain, Product) and plain.rank >= min(plain.up.shape[0], plain.down.shape[1]):
            plain = plain.matrix()
        rows, columns = module.shape[0], math.prod(module.shape[1:])
        shape = (plain.up.shape[0], plain.down.shape[1]) if isinstance(plain, Product) else plain.shape
    except (ValueError, KeyError, IndexError, ZeroDivisionError, numpy.linalg.LinAlgError) as error:
        problem = f"{module.module.name}: the parts of its {module.kind} do not fit together ({error})"
        raise DoesNotFit(module.path, module.module.name, problem) from error
    if shape != (rows, columns):
        problem = f"{module.module.name}: its {module.kind} changes a matrix of shape {list(shape)}, not {[rows, columns]}"
        raise DoesNotFit(module.path, module.module.name, problem)
    if module.is_dora and weight is not None:
        return _dora(module, weight, plain).reshape(rows, columns)
    return plain


def changed_weight(weight: Array, module: NetworkModule, scale: float) -> Array:
    """The weight with the change at `scale`, float32, in its own shape. For a DoRA the scale interpolates linearly."""
    found = change(module, weight)
    matrix = found.matrix() if isinstance(found, Product) else found
    return weight + numpy.float32(scale) * matrix.reshape(weight.shape)


def _plain(module: NetworkModule, weight: Array | None) -> Change:
    found = _KINDS[module.kind](module, weight)
    if module.kind != DIFFERENCE and "diff" in module.parts:
        matrix = found.matrix() if isinstance(found, Product) else found
        return matrix + _flat(module.arrays["diff"])
    return found


def _flat(array: Array) -> Array:
    return array.reshape(array.shape[0], -1)


def _scale(module: NetworkModule, rank: int) -> numpy.float32:
    return numpy.float32(1.0 if module.alpha is None else module.alpha / rank)


def _lora(module: NetworkModule, _: Array | None) -> Change:
    a = module.arrays
    up, down = _flat(a["up"]), a["down"]
    if "mid" in a:  # Tucker: 1x1, the core's kernel, 1x1; the core and the first are combined without raising the rank
        down = numpy.einsum("abkl,bi->aikl", a["mid"], _flat(down))
    return Product(up * _scale(module, down.shape[0]), _flat(down))


def _loha(module: NetworkModule, _: Array | None) -> Change:
    """(w1_a · w1_b) ∘ (w2_a · w2_b): a product of rank r1 · r2, with the row-wise and column-wise Kronecker products."""
    a = module.arrays
    ups, downs = [], []
    for n in "12":
        up, down = a[f"hada_w{n}_a"], a[f"hada_w{n}_b"]
        if f"hada_t{n}" in a:
            up, down = up.T, numpy.einsum("ij...,jr->ir...", a[f"hada_t{n}"], down)
        ups.append(up)
        downs.append(_flat(down))
    scale, (r1, r2) = _scale(module, downs[0].shape[0]), (down.shape[0] for down in downs)
    if r1 * r2 >= min(ups[0].shape[0], downs[0].shape[1]):
        return (ups[0] @ downs[0]) * (ups[1] @ downs[1]) * scale
    up = (ups[0][:, :, None] * ups[1][:, None, :]).reshape(-1, r1 * r2)
    return Product(up * scale, (downs[0][:, None, :] * downs[1][None, :, :]).reshape(r1 * r2, -1))


def _lokr(module: NetworkModule, _: Array | None) -> Change:
    """w1 ⊗ w2 = (u1 ⊗ u2) · (v1 ⊗ v2), where each w is u · v."""
    a = module.arrays
    rank = next((a[part].shape[0] for part in ("lokr_w1_b", "lokr_w2_b") if part in a), 0)
    w1 = Product(a["lokr_w1_a"], a["lokr_w1_b"]) if "lokr_w1_a" in a else _compact(a["lokr_w1"])
    if "lokr_t2" in a:
        w2 = Product(a["lokr_w2_a"].T, _flat(numpy.einsum("ij...,jr->ir...", a["lokr_t2"], a["lokr_w2_b"])))
    elif "lokr_w2_a" in a:
        w2 = Product(a["lokr_w2_a"], _flat(a["lokr_w2_b"]))
    else:
        w2 = _compact(_flat(a["lokr_w2"]))
    scale = _scale(module, rank) if rank else numpy.float32(1)  # two full matrices are never scaled
    if w1.rank * w2.rank >= min(module.shape[0], math.prod(module.shape[1:])):
        return numpy.kron(w1.matrix(), w2.matrix()) * scale
    return Product(numpy.kron(w1.up, w2.up) * scale, numpy.kron(w1.down, w2.down))


def _compact(matrix: Array) -> Product:
    """A matrix as a product of its numerical rank."""
    u, s, v = numpy.linalg.svd(matrix.astype(numpy.float64), full_matrices=False)
    rank = max(1, int((s > s[0] * 1e-7).sum())) if s.size else 1
    return Product((u[:, :rank] * s[:rank]).astype(numpy.float32), v[:rank].astype(numpy.float32))


def _glora(module: NetworkModule, weight: Array | None) -> Change:
    """scale · (W · A + B), with A and B products of two. LyCORIS once swapped the factors; the shapes show a file's order."""
    a = module.arrays
    base = _demand(weight)
    a1, a2, b1, b2 = (_flat(a[part]) for part in ("a1", "a2", "b1", "b2"))
    if b1.shape[0] == base.shape[0] and b2.shape[0] == b1.shape[1]:
        first, second, b, rank = a1, a2, Product(b1, b2), b1.shape[1]
    else:
        first, second, b, rank = a2, a1, Product(b2, b1), b1.shape[0]
    if "bm" in a:
        b = Product(b.up, _flat(numpy.einsum("abkl,bi->aikl", a["bm"], b.down)))
    moved = numpy.einsum("oi...,ij->oj...", numpy.einsum("oi...,ij->oj...", base, first), second)
    return (_flat(moved) + b.matrix()) * _scale(module, rank)


def _ia3(module: NetworkModule, weight: Array | None) -> Change:
    base, factor = _demand(weight), module.arrays["weight"].reshape(-1)
    on_input = bool(module.arrays["on_input"].reshape(-1)[0]) if "on_input" in module.arrays else False
    axis = 1 if on_input else 0
    return _flat(base * factor.reshape([-1 if n == axis else 1 for n in range(base.ndim)]))


def _oft(module: NetworkModule, weight: Array | None) -> Change:
    """W' = Rᵀ W in blocks of rows."""
    base, rotations = _flat(_demand(weight)), _rotations(module)
    blocks, size = rotations.shape[0], rotations.shape[1]
    turned = numpy.einsum("knm,knj->kmj", rotations, base.reshape(blocks, size, -1)).reshape(base.shape)
    return _rescaled(module, turned) - base


def _boft(module: NetworkModule, weight: Array | None) -> Change:
    """The butterfly: m rounds of block rotations, between which the rows are permuted."""
    base = _flat(_demand(weight))
    turned = base
    rotations = _rotations(module)
    rounds, blocks, size = rotations.shape[:3]
    for number in range(rounds):
        stride = 2**number * (size // 2)
        rows = turned.reshape(-1, 2, stride, turned.shape[1]).swapaxes(1, 2).reshape(blocks, size, -1)
        rows = numpy.einsum("bij,bjn->bin", rotations[number], rows)
        turned = rows.reshape(-1, stride, 2, turned.shape[1]).swapaxes(1, 2).reshape(turned.shape)
    return _rescaled(module, turned) - base


def _rotations(module: NetworkModule) -> Array:
    """Cayley: R = (I + Q)(I - Q)⁻¹ with Q = B - Bᵀ, whose norm is limited to the constraint (alpha · out)."""
    blocks = module.arrays["oft_blocks"].astype(numpy.float64)
    q = blocks - blocks.swapaxes(-1, -2)
    constraint, norm = (module.alpha or 0.0) * module.shape[0], numpy.linalg.norm(q)
    if 0 < constraint < norm:
        q = q * (constraint / norm)
    identity = numpy.eye(q.shape[-1])
    return ((identity + q) @ numpy.linalg.inv(identity - q)).astype(numpy.float32)


def _rescaled(module: NetworkModule, turned: Array) -> Array:
    return turned * module.arrays["rescale"].reshape(-1, 1) if "rescale" in module.arrays else turned


def _difference(module: NetworkModule, _: Array | None) -> Change:
    part = next((part for part in ("diff", "w_norm") if part in module.arrays), None)
    if part is None:
        return numpy.zeros((module.shape[0], math.prod(module.shape[1:])), numpy.float32)
    return _flat(module.arrays[part])


_KINDS: dict[str, Callable[[NetworkModule, Array | None], Change]] = {
    "LoRA": _lora, "LoHa": _loha, "LoKr": _lokr, "GLoRA": _glora, "IA3": _ia3, "OFT": _oft, "BOFT": _boft,
    DIFFERENCE: _difference,
}  # fmt: skip


def _dora(module: NetworkModule, weight: Array, plain: Change) -> Array:
    """magnitude · V / ||V|| - W, with V = W + ΔW; norms per output row, or per input column as in older LyCORIS."""
    matrix = plain.matrix() if isinstance(plain, Product) else plain
    full = weight + matrix.reshape(weight.shape)
    magnitude = module.arrays.get("magnitude", module.arrays.get("dora_scale"))
    assert magnitude is not None
    columns = "dora_scale" in module.parts and magnitude.shape[0] != module.shape[0]
    kept = 1 if columns else 0
    norm = numpy.sqrt((full**2).sum(axis=tuple(axis for axis in range(full.ndim) if axis != kept), keepdims=True))
    changed: Array = full * (magnitude.reshape(norm.shape) / norm) - weight
    return changed


def _demand(weight: Array | None) -> Array:
    if weight is None:
        raise ValueError("its change needs the base's weight: give --base")
    return weight
