"""The best product of a given rank for a change of weights (Eckart–Young), and how far it is off.

A product of small matrices is reduced through the QR decompositions of its factors, so that the whole matrix is never
built. A whole matrix too large for an exact SVD gets a randomised one (Halko, Martinsson, Tropp, arXiv 0909.4061,
algorithms 4.4 and 5.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy

from ..errors import UsageError
from .arrays import Array
from .change import Change, Product

EXACT = 400
"""Rows or columns up to which a whole matrix is decomposed exactly."""

MOST_RANK = 1280
"""No layer that a LoRA patches has more rows, or fewer columns, than make sense of it."""

OVERSAMPLE, POWER = 16, 4
"""Extra columns and power iterations of the randomised SVD: its error is then within a fraction of a percent of the best."""


@dataclass(frozen=True)
class Limit:
    """How much of a change is kept. Each given limit holds."""

    rank: int | None = None
    """at most"""
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
        """Whether a product of this rank is within the limit whatever its singular values are."""
        return self.keep is None and self.ratio is None and (self.rank is None or rank <= self.rank)

    def of(self, values: Array, total: float) -> int:
        """The rank for singular values in falling order, of a matrix whose squared norm is `total`; at least 1."""
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
    """The best product for `change` within `limit`, its factors of equal norm; `change` itself where nothing limits it."""
    if isinstance(change, Product):
        if limit.allows(change.rank):
            return change
        u, s, v = _svd_of_product(change)
        total = float((s.astype(numpy.float64) ** 2).sum())
    else:
        u, s, v, total = _svd_of_matrix(change, limit)
    rank = limit.of(s, total)
    root = numpy.sqrt(s[:rank])
    return Product((u[:, :rank] * root).astype(numpy.float32), (v[:rank] * root[:, None]).astype(numpy.float32))


def _svd_of_product(change: Product) -> tuple[Array, Array, Array]:
    q_up, r_up = numpy.linalg.qr(change.up)
    q_down, r_down = numpy.linalg.qr(change.down.T)
    u, s, v = numpy.linalg.svd(r_up.astype(numpy.float64) @ r_down.astype(numpy.float64).T, full_matrices=False)
    return q_up @ u.astype(numpy.float32), s.astype(numpy.float32), v.astype(numpy.float32) @ q_down.T


def _svd_of_matrix(matrix: Array, limit: Limit) -> tuple[Array, Array, Array, float]:
    total = norm(matrix) ** 2
    smaller = min(matrix.shape)
    rank = limit.rank if limit.rank is not None else 64
    while smaller > EXACT and rank + OVERSAMPLE < smaller // 2:
        u, s, v = _randomised(matrix, rank + OVERSAMPLE)
        if limit.rank is not None or limit.of(s, total) <= rank:
            return u, s, v, total
        rank *= 2
    u, s, v = numpy.linalg.svd(matrix, full_matrices=False)
    return u, s, v, total


def _randomised(matrix: Array, columns: int) -> tuple[Array, Array, Array]:
    draw = numpy.random.default_rng(0)  # the same file every time
    basis, _ = numpy.linalg.qr(matrix @ draw.standard_normal((matrix.shape[1], columns), dtype=numpy.float32))
    for _ in range(POWER):
        other, _ = numpy.linalg.qr(matrix.T @ basis)
        basis, _ = numpy.linalg.qr(matrix @ other)
    u, s, v = numpy.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, v


def norm(change: Change) -> float:
    """The Frobenius norm."""
    if isinstance(change, Product):
        _, r_up = numpy.linalg.qr(change.up.astype(numpy.float64))
        _, r_down = numpy.linalg.qr(change.down.T.astype(numpy.float64))
        return float(numpy.linalg.norm(r_up @ r_down.T))
    return math.sqrt(sum(float(numpy.dot(row, row)) for row in change.astype(numpy.float64, copy=False)))


def distance(change: Change, product: Product) -> float:
    """The norm of what `product` lacks of `change`."""
    if isinstance(change, Product):
        return norm(joined([(change, 1.0), (product, -1.0)]))
    return norm(change - product.matrix())


def joined(products: list[tuple[Product, float]]) -> Product:
    """The weighted sum of products, exactly: their factors side by side."""
    ups = [product.up * numpy.float32(weight) for product, weight in products]
    return Product(numpy.concatenate(ups, axis=1), numpy.concatenate([product.down for product, _ in products]))
