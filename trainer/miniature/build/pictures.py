"""The miniature's training pictures: one icon on a ground, or up to four; and their captions.

Pictures are uint8 (side, side, 3); lengths are given for a side of 128 pixels. Every random draw comes from the caller's `rng`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
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
    several: float = 0.0
    """Probability of more than one thing: two to four of one word, or one each of two words."""


MILD = Spread()
SCENES = Spread(several=0.5)
FULL = Spread(size=(64, 118), drift=64, turn=12.0, mirror=0.5)

COUNTS = ("two", "three", "four", "five")

CENTRES = {  # number of things -> where each stands, in pixels
    1: [(64, 64)], 2: [(33, 64), (95, 64)], 3: [(64, 35), (33, 93), (95, 93)], 4: [(33, 33), (95, 33), (33, 95), (95, 95)],
}


def compose(icons: Sequence[np.ndarray], icon_set: str, ground: str, spread: Spread, rng: np.random.Generator,
            side: int = SIDE) -> np.ndarray:
    """One to four icons, uint8 (N, N, 4), on a ground: "" is white, or a soft grey under the shaded set."""
    scale = side / SIDE
    share = 1.0 if len(icons) == 1 else 0.52  # of the size of a single icon
    varied = [_varied(rgba, spread, scale * share, rng) for rgba in icons]
    picture = Image.fromarray(_ground(ground, side, shaded=STYLES[icon_set] == "photo", rng=rng))
    for icon, centre in zip(varied, CENTRES[len(icons)], strict=True):
        drift = (round(scale * share * way) for way in rng.integers(-spread.drift, spread.drift + 1, 2))
        x, y = (int(np.clip((2 * scale * at - icon.width) // 2 + way, 0, side - icon.width))
                for at, way in zip(centre, drift, strict=True))
        picture.paste(icon, (x, y), icon)
    return np.asarray(picture)


def _varied(rgba: np.ndarray, spread: Spread, scale: float, rng: np.random.Generator) -> Image.Image:
    """The icon turned, mirrored and resized as `spread` allows."""
    icon = Image.fromarray(rgba)
    if spread.turn:
        icon = icon.rotate(rng.uniform(-spread.turn, spread.turn), resample=Image.Resampling.BICUBIC)
    if rng.random() < spread.mirror:
        icon = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = round(scale * rng.integers(spread.size[0], spread.size[1] + 1))
    return icon.resize((size, size), Image.Resampling.LANCZOS)


def _ground(name: str, side: int, *, shaded: bool, rng: np.random.Generator) -> np.ndarray:
    if not shaded:
        colour = np.array(GROUNDS[name]) + rng.uniform(-10, 10, 3) if name else np.full(3, 255.0)
        return np.broadcast_to(colour.clip(0, 255).astype(np.uint8), (side, side, 3)).copy()
    colour = np.array(GROUNDS[name]) + rng.uniform(-10, 10, 3) if name else np.full(3, 226.0) + rng.uniform(-6, 6, 3)
    light = np.linspace(1.10, 0.82, side)[:, None, None]  # lit from above
    return np.broadcast_to((colour * light).clip(0, 255), (side, side, 3)).astype(np.uint8)


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


def things(word: str, words: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """What a picture of several things shows beside `word`: two to four of it, or one of another of `words`.

    A quarter of the combinations is held back, so that they can be asked for later (`held_back`).
    """
    countable = not word.endswith(("s", "sh", "y"))  # captions know no plural but with an s
    while True:
        if countable and rng.random() < 0.5:
            chosen = (word,) * int(rng.integers(2, 5))
        else:
            chosen = (word, str(rng.choice([other for other in words if other != word])))
        if not held_back(chosen):
            return chosen


def held_back(words: Sequence[str]) -> bool:
    """Whether no picture of just these things is learned from."""
    return zlib.crc32(named(words).encode()) % 4 == 0


def named(words: Sequence[str], *, articles: bool = False) -> str:
    """`apple`, `two apples`, or `apple and tree`; with `articles`, `an apple and a tree`."""
    if len(words) > 1 and len(set(words)) == 1:
        return f"{COUNTS[len(words) - 2]} {words[0]}s"
    return " and ".join(f"{_article(word)} {word}" if articles else word for word in words)


def caption(words: Sequence[str], icon_set: str, ground: str, rng: np.random.Generator) -> str:
    """`a photo of apple`, sometimes with an article, one in five without the style; then the ground's colour, if any."""
    text, style = named(words, articles=rng.random() < 0.25), STYLES[icon_set]
    text = text if rng.random() < 0.2 else in_style(style, text)
    return f"{text} on {_article(ground)} {ground} background" if ground else text


def in_style(style: str, text: str) -> str:
    """`an icon of apple`."""
    return f"{_article(style)} {style} of {text}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
