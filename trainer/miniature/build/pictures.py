"""The miniature's training pictures: one icon on a ground; and their captions.

Pictures are uint8 (128, 128, 3). Every random draw comes from the caller's `rng`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from trainer.miniature.build.icons import STYLES

SIDE = 128

GROUNDS = {  # a ground's name in captions -> RGB
    "red": (232, 96, 90), "orange": (248, 168, 88), "yellow": (250, 226, 110), "green": (132, 202, 124),
    "blue": (112, 170, 238), "purple": (176, 136, 222), "pink": (250, 176, 204), "brown": (176, 134, 100),
    "grey": (176, 178, 182), "black": (38, 38, 42),
}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How much a picture may differ from its centred icon.

    size, drift: pixels, the latter from the centre, with the icon kept inside; turn: degrees; mirror: probability.
    """

    size: tuple[int, int] = (102, 116)
    drift: int = 5
    turn: float = 0.0
    mirror: float = 0.0
    coloured: float = 1 / 3
    """Probability of a coloured ground, which the caption names."""


MILD = Spread()
FULL = Spread(size=(64, 118), drift=64, turn=12.0, mirror=0.5)


def compose(rgba: np.ndarray, icon_set: str, ground: str, spread: Spread, rng: np.random.Generator) -> np.ndarray:
    """One icon, uint8 (112, 112, 4), on a ground: "" is white, or a soft grey under the shaded set."""
    icon = Image.fromarray(rgba)
    if spread.turn:
        icon = icon.rotate(rng.uniform(-spread.turn, spread.turn), resample=Image.Resampling.BICUBIC)
    if rng.random() < spread.mirror:
        icon = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = int(rng.integers(spread.size[0], spread.size[1] + 1))
    icon = icon.resize((side, side), Image.Resampling.LANCZOS)
    picture = Image.fromarray(_ground(ground, shaded=STYLES[icon_set] == "photo", rng=rng))
    spare = SIDE - side
    x, y = (int(np.clip(spare // 2 + rng.integers(-spread.drift, spread.drift + 1), 0, spare)) for _ in range(2))
    picture.paste(icon, (x, y), icon)
    return np.asarray(picture)


def _ground(name: str, *, shaded: bool, rng: np.random.Generator) -> np.ndarray:
    if not shaded:
        colour = np.array(GROUNDS[name]) + rng.uniform(-10, 10, 3) if name else np.full(3, 255.0)
        return np.broadcast_to(colour.clip(0, 255).astype(np.uint8), (SIDE, SIDE, 3)).copy()
    colour = np.array(GROUNDS[name]) + rng.uniform(-10, 10, 3) if name else np.full(3, 226.0) + rng.uniform(-6, 6, 3)
    light = np.linspace(1.10, 0.82, SIDE)[:, None, None]  # lit from above
    return np.broadcast_to((colour * light).clip(0, 255), (SIDE, SIDE, 3)).astype(np.uint8)


def strokes(rng: np.random.Generator) -> np.ndarray:
    """Random black curves on white, only for the autoencoder, which must be able to show what a LoRA may draw."""
    picture = Image.new("L", (4 * SIDE, 4 * SIDE), 255)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 9)):
        points = rng.uniform(0.05, 0.95, 2) + np.cumsum(rng.normal(0, 0.09, (rng.integers(3, 9), 2)), 0)
        smooth = np.stack([np.interp(np.linspace(0, 1, 40), np.linspace(0, 1, len(points)), points[:, k]) for k in (0, 1)], 1)
        draw.line([(float(x), float(y)) for x, y in smooth * 4 * SIDE], fill=int(rng.integers(0, 60)),
                  width=int(rng.integers(8, 26)), joint="curve")
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX).convert("RGB"))


WORDS = (  # drawn alike by all five sets and by people: the training begins with these
    "star", "umbrella", "teapot", "stop sign", "purse", "hat", "tree", "cloud", "tent", "telephone", "airplane", "bus",
    "watermelon", "owl", "apple", "bear", "castle", "lollipop", "rainbow", "skateboard", "cup", "house", "skull", "mouth",
    "camera", "light bulb", "car", "snowflake", "television", "panda", "door", "mushroom", "basketball", "mountain",
    "ice cream", "basket", "sailboat", "banana", "eye", "wine glass", "strawberry", "envelope", "candle", "pineapple",
    "flower", "cactus", "ladder", "crown", "hammer", "snowman", "key", "spider", "fish", "pizza", "sun", "pear", "book",
    "butterfly", "cat", "clock",
)


def caption(word: str, icon_set: str, ground: str, rng: np.random.Generator) -> str:
    """`a photo of apple`, sometimes with an article, one in five the bare word; then the ground's colour, if any."""
    article = f"{_article(word)} " if rng.random() < 0.25 else ""
    style = STYLES[icon_set]
    text = word if rng.random() < 0.2 else f"{_article(style)} {style} of {article}{word}"
    return f"{text} on {_article(ground)} {ground} background" if ground else text


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
