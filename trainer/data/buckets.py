"""Aspect-ratio buckets: the shapes of training pictures, and the choice of one for a picture."""

from __future__ import annotations

import math
from functools import lru_cache

Shape = tuple[int, int]
"""height and width in pixels"""


@lru_cache
def bucket_shapes(resolution: int, step: int, max_aspect: float) -> tuple[Shape, ...]:
    """Shapes in multiples of `step` pixels with at most the area resolution x resolution: the widest at each height, both
    ways round.

    For 512: 512 x 512, 448 x 576, 384 x 640, ... as in kohya's sd-scripts and others. `max_aspect` limits long side / short
    side.
    """
    shapes = {(resolution, resolution)}
    for short in range(step, resolution + 1, step):
        long = resolution * resolution // short // step * step
        if long <= max_aspect * short:
            shapes |= {(short, long), (long, short)}
    return tuple(sorted(shapes))


def bucket_of(width: int, height: int, resolution: int, step: int, max_aspect: float) -> Shape:
    """The bucket with the nearest aspect ratio, which crops least."""
    aspect = math.log(width / height)
    return min(bucket_shapes(resolution, step, max_aspect),
               key=lambda shape: (abs(math.log(shape[1] / shape[0]) - aspect), -shape[0] * shape[1]))


def kept_area(width: int, height: int, shape: Shape) -> float:
    """Share of a picture's area that is left when it covers `shape` and the rest is cropped."""
    ratio = (width / height) / (shape[1] / shape[0])
    return min(ratio, 1 / ratio)


def enlargement(width: int, height: int, shape: Shape) -> float:
    """The factor by which a picture is scaled to cover `shape`; below 1 it shrinks."""
    return max(shape[0] / height, shape[1] / width)
