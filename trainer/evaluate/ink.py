"""Ink distance: how far a picture's strokes are from those of real drawings, regardless of the subject.

The paper finds that CLIP score cannot judge scribbles, and CLIP's similarity mixes subject and style. This measure depends only
on style: six statistics of strokes. A picture's distance is the root mean square of its deviations from the held-out drawings'
means, each in units of the drawings' own spread, but at least `LEAST`, the smallest visible difference. The drawings are first
encoded and decoded by the base's VAE, because the base cannot draw anything nearer: then their distance is around 0.6, while
the raw bitmaps, which are sharper, have around 1.9. No network is trained or used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 64  # pixels at which pictures of any size are measured, so that stroke edges weigh the same
LEAST = np.array([0.02, 0.02, 0.04, 0.02, 0.01, 0.01])
"""Smallest spread of each statistic that counts, in its own unit (brightness, share of pixels, share of the side)."""

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def statistics(picture: np.ndarray) -> np.ndarray:
    """The six statistics, (6,) float64 in [0, 1], of a picture, uint8 (H, W, 3).

    ground: brightness above which a quarter of the pixels lie. colour: mean of (max - min) over RGB. ink tone:
    brightness of the darkest 2 %. ink share: pixels darker than halfway between the two. stroke width: twice the ink's area
    over its outline's length, as a share of the side. between: mean distance of a pixel's brightness to the nearer of ink
    and ground.
    """
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float64) / 255
    light = rgb @ _LUMA
    ground, tone = np.quantile(light, 0.75), np.quantile(light, 0.02)
    ink = light < (ground + tone) / 2
    outline = sum(int((a != b).sum()) for a, b in ((ink[1:], ink[:-1]), (ink[:, 1:], ink[:, :-1])))
    between = np.minimum(abs(light - ground), abs(light - tone)).mean()
    colour = (rgb.max(axis=-1) - rgb.min(axis=-1)).mean()
    return np.array([ground, colour, tone, ink.mean(), 2 * ink.sum() / max(outline, 1) / SIDE, between])


@dataclass(frozen=True)
class Ink:
    """The held-out drawings' statistics: mean and spread, (6,) each; `own`: their mean distance from themselves."""

    mean: np.ndarray
    spread: np.ndarray
    own: float = 0.0

    @classmethod
    def of(cls, drawings: Sequence[np.ndarray]) -> Ink:
        """Measure `drawings`, uint8 (H, W, 3) each, dark on light."""
        found = np.stack([statistics(drawing) for drawing in drawings])
        mean, spread = found.mean(axis=0), np.maximum(found.std(axis=0), LEAST)
        return cls(mean, spread, float(_distance(found, mean, spread).mean()))

    def distance(self, picture: np.ndarray) -> float:
        """Of one picture, uint8 (H, W, 3): below 1 for most drawings decoded by the VAE, above 3 for other pictures."""
        return float(_distance(statistics(picture), self.mean, self.spread))


def _distance(found: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt((((found - mean) / spread) ** 2).mean(axis=-1)))
