"""Ink distance orders known cases; scales are read as users write them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convert.errors import UsageError
from tests.drawings import WORDS, drawing
from trainer.base.sd15 import SCRIBBLE_NARROW, SD_V1
from trainer.cli import parse_scales
from trainer.data.records import process
from trainer.evaluate.ink import Ink
from trainer.evaluate.settings import Settings

NAMES = sorted(WORDS)


def doodles(seed: int, count: int = 32, side: int = 64) -> list[np.ndarray]:
    return [process(drawing(NAMES[k % 16], np.random.default_rng([seed, k])), side) for k in range(count)]


def painted(style: str, count: int = 32) -> list[np.ndarray]:
    """Drawings filled: black, red, or red on a blue ground that fades."""
    made = []
    for k in range(count):
        ink = Image.fromarray(process(drawing(NAMES[k % 16], np.random.default_rng([7, k])), 64)).convert("L").point(
            lambda value: 255 * (value > 160))
        ImageDraw.floodfill(ink, (0, 0), 128)  # the ground; what it does not reach is inside
        inside = (np.asarray(ink) != 128)[..., None]
        ground = np.full((64, 64, 3), 255.0)
        if style == "photo":
            ground = np.array([90.0, 120, 230]) * np.linspace(1.1, 0.7, 64)[:, None, None]
        colour = np.array([214, 40, 40]) if style != "silhouette" else np.zeros(3)
        made.append(np.where(inside, colour, ground).clip(0, 255).astype(np.uint8))
    return made


def test_ink_distance_orders_known_cases() -> None:
    """Other doodles are near; silhouettes and icons further; photos, inverted drawings and no drawing furthest."""
    ink = Ink.of(doodles(1))

    def median(pictures: list[np.ndarray]) -> float:
        return float(np.median([ink.distance(picture) for picture in pictures]))

    new = doodles(2)
    near, photo = median(new), median(painted("photo"))
    between = {style: median(painted(style)) for style in ("silhouette", "icon")}
    assert near < 1 < 2 < min(between.values()) and max(between.values()) < photo
    red = [np.maximum(picture, np.array([214, 0, 0], dtype=np.uint8)) for picture in new]
    assert near < median(red) < photo  # the right lines in the wrong colour
    assert median([255 - picture for picture in new]) > max(between.values())
    assert ink.distance(np.full((64, 64, 3), 255, np.uint8)) > min(between.values())  # white paper is not a scribble
    assert abs(median(doodles(2, side=512)) - near) < 0.1  # whatever the resolution


def test_scales_as_a_person_writes_them() -> None:
    assert parse_scales("0:1:0.1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_scales("0:1:0.3") == [0, 0.3, 0.6, 0.9]
    assert parse_scales("1, 0.5,1") == [0.5, 1.0]
    assert Settings(scales="1").scale_list == [0.0, 1.0]  # the base is always drawn
    assert Settings().settled(SD_V1).scale_list == parse_scales("0:1:0.1")
    assert Settings().settled(SCRIBBLE_NARROW).scale_list == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert Settings(scales="0:1:0.5").settled(SCRIBBLE_NARROW).scale_list == [0, 0.5, 1.0]


@pytest.mark.parametrize("text", [",", "a", "0:1", "0:1:0", "0:1:-1", "1:0:0.1", "0,3", "nan", "0:inf:0.1", "-1",
                                  "0:1:0.00005", "0:2:1e-9", "0"])
def test_invalid_scales(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--scales .*expected"):
        Settings(scales=text)
