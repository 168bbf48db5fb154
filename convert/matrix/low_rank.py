"""The best approximation of a weight change with a given rank (Eckart–Young), and its error.

A product of small matrices is reduced through the Gram matrices of its factors, without building the full matrix. A full
matrix is reduced through its own Gram matrix, which has at most 1280 rows in Stable Diffusion 1.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy

from ..errors import UsageError
from .arrays import Array
from .change import Change, Product

MOST_RANK = 1280
"""The smaller side of the largest layers, and so the highest possible rank."""

NOISE = 1e-7
"""Relative to the largest singular value; smaller ones are rounding errors."""

Double = numpy.ndarray[Any, numpy.dtype[numpy.float64]]


@dataclass(frozen=True)
class Limit:
    """Limits for the rank of an approximation. All given limits apply."""

    rank: int | None = None
    """the highest rank"""
    keep: float | None = None
    """share of the change's norm (Frobenius) that must be kept, 0 to 1"""
    ratio: float | None = None
    """singular values below the largest divided by this are dropped"""

    def __post_init__(self) -> None:
        if self.rank is not None and not 1 <= self.rank <= MOST_RANK:
            raise UsageError(f"--rank {self.rank}: must be a whole number from 1 to {MOST_RANK}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UsageError(f"--keep {self.keep:g}: must be a share above 0 and at most 1")
        if self.ratio is not None and not 1 <= self.ratio < math.inf:
            raise UsageError(f"--sv-ratio {self.ratio:g}: must be a number from 1")

    @property
    def is_none(self) -> bool:
        return self.rank is None and self.keep is None and self.ratio is None

    def allows(self, rank: int) -> bool:
        """Whether a product of this rank is within the limit for any singular values."""
        return self.keep is None and self.ratio is None and (self.rank is None or rank <= self.rank)

    def of(self, values: Array, total: float) -> int:
        """The rank for singular values in descending order, of a matrix with squared norm `total`; at least 1."""
        rank = len(values)
        if self.keep is not None and total > 0:
            kept = numpy.sqrt(numpy.cumsum(values.astype(numpy.float64) ** 2) / total)
            rank = min(rank, 1 + int((kept < self.keep - 1e-9).sum()))
        if self.ratio is not None and rank and values[0] > 0:
            rank = min(rank, int((values >= values[0] / self.ratio).sum()))
        if self.rank is not None:
            rank = min(rank, self.rank)
        return max(rank, 1)


def reduced(change: Change, limit: Limit) -> Product:
    """The best product for `change` within `limit`, with factors of equal norm; `change` itself if `limit` allows it."""
    if isinstance(change, Product):
        if limit.allows(change.rank):
            return change
        return _reduced_product(change, limit)
    if change.shape[0] > change.shape[1]:
        turned = reduced(numpy.ascontiguousarray(change.T), limit)
        return Product(turned.down.T, turned.up.T)
    u, s = _left_vectors(change)
    rank = limit.of(s, norm(change) ** 2)
    root = numpy.sqrt(numpy.maximum(s[:rank], 1e-30)).astype(numpy.float32)
    return Product(u[:, :rank] * root, (u[:, :rank].T @ change) / root[:, None])


def _reduced_product(change: Product, limit: Limit) -> Product:
    """Through the small matrices UᵀU and D Dᵀ, in double precision: with L Lᵀ = D Dᵀ, U D and U L have the same left
    singular vectors and singular values.
    """
    of_up, of_down = _grams(change)
    values, vectors = numpy.linalg.eigh(of_down)
    lower = vectors * numpy.sqrt(numpy.maximum(values, 0.0))
    values, vectors = numpy.linalg.eigh(lower.T @ of_up @ lower)
    s = numpy.sqrt(numpy.maximum(values[::-1], 0.0))
    rank = max(1, min(limit.of(s.astype(numpy.float32), float((s**2).sum())), int((s > NOISE * s[0]).sum())))
    s = numpy.maximum(s[:rank], 1e-30)
    right = (lower @ vectors[:, ::-1][:, :rank]) / s
    # u = U · right; the best product is u uᵀ U D
    up = (change.up @ (right * numpy.sqrt(s)).astype(numpy.float32)).astype(numpy.float32)
    down = ((right.T @ of_up) / numpy.sqrt(s)[:, None]).astype(numpy.float32) @ change.down
    return Product(up, down)


def _grams(change: Product) -> tuple[Double, Double]:
    up, down = change.up.astype(numpy.float64), change.down.astype(numpy.float64)
    return up.T @ up, down @ down.T


def _left_vectors(matrix: Array) -> tuple[Array, Array]:
    """All left singular vectors and, in descending order, singular values of a wide matrix. They are the eigenvectors of
    M Mᵀ and the roots of its eigenvalues, which is much faster than an SVD.
    """
    wide = matrix.astype(numpy.float64)
    values, vectors = numpy.linalg.eigh(wide @ wide.T)
    s = numpy.sqrt(numpy.maximum(values[::-1], 0.0))
    return vectors[:, ::-1].astype(numpy.float32), s.astype(numpy.float32)


def norm(change: Change) -> float:
    """The Frobenius norm."""
    if isinstance(change, Product):
        of_up, of_down = _grams(change)
        return math.sqrt(max(float((of_up * of_down).sum()), 0.0))  # tr(UᵀU · D Dᵀ)
    return math.sqrt(sum(float(numpy.dot(row, row)) for row in change.astype(numpy.float64, copy=False)))


def distance(change: Change, product: Product) -> float:
    """The norm of `change` minus `product`."""
    if isinstance(change, Product):
        return norm(joined([(change, 1.0), (product, -1.0)]))
    return norm(change - product.matrix())


def joined(products: list[tuple[Product, float]]) -> Product:
    """The exact weighted sum of products, by concatenating their factors."""
    ups = [product.up * numpy.float32(weight) for product, weight in products]
    return Product(numpy.concatenate(ups, axis=1), numpy.concatenate([product.down for product, _ in products]))
