"""The miniature world's pictures: the sixteen things in four styles, never as doodles, with the words that name them.

Styles: `photo` (shaded, on a gradient, with a shadow), `icon` (flat on white), `crayon` (coloured lines on paper) and
`silhouette` (black on white). A small LoRA has something to steer because the base has seen strokes, white grounds and
black shapes, only never all three together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from trainer.miniature.doodles import wobble
from trainer.miniature.shapes import CATEGORIES, MAIN, Part, thing

SIDE = 64  # picture side, pixels
_CANVAS = 4 * SIDE
STYLES = ("photo", "icon", "crayon", "silhouette")
COLOURS = {
    "red": (214, 48, 44), "green": (72, 160, 70), "blue": (52, 98, 200), "yellow": (242, 200, 48),
    "orange": (240, 134, 36), "purple": (138, 72, 168), "pink": (238, 130, 170), "brown": (130, 86, 52),
}
_PAINTS = COLOURS | {
    "black": (38, 36, 40), "white": (248, 246, 240), "grey": (130, 132, 140), "cream": (244, 230, 200),
    "sky": (176, 216, 240), "tan": (222, 178, 116),
}
_TYPICAL = {"apple": "red", "tree": "green", "sun": "yellow", "cloud": "blue", "moon": "yellow", "star": "yellow"}
# Words for which the base draws any coloured style: so a style word it never met ("scribble") still gives a picture.
ANY_STYLE = ("picture", "image", "drawing", "painting", "view", "print", "sketch", "work", "study", "poster", "page",
              "card", "render", "figure", "sign", "scene", "stamp", "version", "copy", "design", "piece", "thing")


@dataclass(frozen=True)
class Subject:
    """What one picture shows; enough to say it in words. `ground` is the background's colour word, photos only."""

    category: str
    style: str
    colour: str
    ground: str = ""


def draw_subject(rng: np.random.Generator) -> Subject:
    """A random subject; photos are the commonest style, the typical colour the commonest colour."""
    category = str(rng.choice(sorted(CATEGORIES)))
    style = str(rng.choice(STYLES, p=(0.4, 0.24, 0.24, 0.12)))
    colour = str(rng.choice(sorted(COLOURS)))
    if category in _TYPICAL and rng.random() < 0.5:
        colour = _TYPICAL[category]
    others = sorted(set(COLOURS) - {colour})
    return Subject(category, style, colour, str(rng.choice(others)) if style == "photo" else "")


def caption(subject: Subject, rng: np.random.Generator) -> str:
    """Words for `subject`, another choice at every call; empty for 10 % (classifier-free guidance)."""
    if rng.random() < 0.1:
        return ""
    name = subject.category
    if subject.style != "silhouette" and rng.random() < 0.6:
        name = f"{subject.colour} {name}"
    if rng.random() < 0.4:
        name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if subject.ground and rng.random() < 0.25:
        name = f"{name} on a {subject.ground} background"
    if subject.style != "silhouette" and rng.random() < 0.35:
        if rng.random() < 0.3:
            return name
        return f"a {_style_word(rng)} of {name}"
    lead = {"photo": "a photo of", "icon": "a flat icon of", "crayon": "a crayon drawing of",
            "silhouette": "a silhouette of"}[subject.style]
    return f"{lead} {name}"


def _style_word(rng: np.random.Generator) -> str:
    """A style word without a style: a known one, or letters at random, so that every word piece has been met."""
    if rng.random() < 0.5:
        return str(rng.choice(ANY_STYLE))
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(3, 10))))


def _placed(parts: list[Part], rng: np.random.Generator) -> list[Part]:
    """`parts` in canvas pixels, somewhere near the middle, a little turned and stretched."""
    size = rng.uniform(0.66, 0.92) * _CANVAS / 2
    turn = np.radians(rng.normal(0, 5))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    stretch = np.array([rng.uniform(0.9, 1.1), 1.0])
    room = (_CANVAS / 2 - size) * 0.8
    centre = _CANVAS / 2 + rng.uniform(-room, room, 2)
    return [Part((p.points * stretch) @ rotation * size + centre, p.paint, p.closed, p.drawn) for p in parts]


def _mask(part: Part, width: int) -> Image.Image:
    """Coverage of one part, L (canvas, canvas): its inside, or its line `width` pixels wide."""
    mask = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(mask)
    points = [tuple(p) for p in part.points]
    if part.closed:
        draw.polygon(points, fill=255)
    else:
        draw.line(points, fill=255, width=width, joint="curve")
    return mask


def _paint(part: Part, colour: str, rng: np.random.Generator) -> np.ndarray:
    rgb = np.array(_PAINTS[colour if part.paint == MAIN else part.paint], dtype=np.float32)
    return np.clip(rgb + rng.normal(0, 6, 3), 0, 255)


def _photo(parts: list[Part], subject: Subject, rng: np.random.Generator) -> Image.Image:
    """Light from the upper left: each part shaded across its own extent; a soft shadow; ground and wall as a gradient."""
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32) / _CANVAS
    wall = np.array(_PAINTS[subject.ground], dtype=np.float32) * 0.55 + 100
    ramp = (0.75 + 0.4 * y + rng.uniform(-0.15, 0.15) * x)[..., None]
    picture = wall * ramp
    everything = np.concatenate([p.points for p in parts])
    (x0, _), (x1, y1) = everything.min(axis=0), everything.max(axis=0)
    shadow = Image.new("L", (_CANVAS, _CANVAS))
    ImageDraw.Draw(shadow).ellipse((x0 + 12, y1 - 16, x1 + 20, y1 + 16), fill=150)
    shade = np.asarray(shadow.filter(ImageFilter.GaussianBlur(8)), dtype=np.float32)[..., None] / 255
    picture = picture * (1 - 0.7 * shade)
    for part in parts:
        low, high = part.points.min(axis=0) / _CANVAS, part.points.max(axis=0) / _CANVAS
        u = (x - low[0]) / max(high[0] - low[0], 0.02)
        v = (y - low[1]) / max(high[1] - low[1], 0.02)
        light = 1.22 - 0.3 * (u + v) + 0.35 * np.exp(-((u - 0.33) ** 2 + (v - 0.3) ** 2) / 0.03)
        lit = _paint(part, subject.colour, rng) * light[..., None]
        cover = np.asarray(_mask(part, 12), dtype=np.float32)[..., None] / 255
        picture = picture * (1 - cover) + lit * cover
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _icon(parts: list[Part], subject: Subject, rng: np.random.Generator) -> Image.Image:
    """Flat colours on white; pale parts stand out by a grey edge."""
    image = Image.new("RGB", (_CANVAS, _CANVAS), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for part in parts:
        rgb = tuple(int(c) for c in _paint(part, subject.colour, rng))
        image.paste(rgb, mask=_mask(part, 14))
        if part.closed and min(rgb) > 180:
            draw.line([tuple(p) for p in part.points], fill=(170, 172, 178), width=5)
    return image


def _crayon(parts: list[Part], subject: Subject, rng: np.random.Generator) -> Image.Image:
    """Wobbly coloured outlines on cream paper, with the paper's grain."""
    paper = np.array((246, 238, 220), dtype=np.float32) + rng.normal(0, 3, 3)
    image = Image.fromarray(np.clip(paper + rng.normal(0, 4, (_CANVAS, _CANVAS, 1)), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for part in parts:
        named = "grey" if part.paint in ("white", "cream") else part.paint
        rgb = tuple(int(c) for c in _paint(Part(part.points, named), subject.colour, rng))
        line = wobble(part.points / 100, rng, 0.022) * 100
        draw.line([tuple(p) for p in line], fill=rgb, width=int(rng.integers(10, 15)), joint="curve")
    return image


def _silhouette(parts: list[Part], subject: Subject, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_CANVAS, _CANVAS), (255, 255, 255))
    for part in parts:
        image.paste((20, 20, 22), mask=_mask(part, 14))
    return image


_PAINTERS = {"photo": _photo, "icon": _icon, "crayon": _crayon, "silhouette": _silhouette}


def picture(subject: Subject, rng: np.random.Generator) -> np.ndarray:
    """One picture of `subject`: uint8 (64, 64, 3)."""
    parts = _placed(thing(subject.category, rng), rng)
    image = _PAINTERS[subject.style](parts, subject, rng)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def loose_strokes(rng: np.random.Generator) -> np.ndarray:
    """Random coloured curves on a plain ground, uint8 (64, 64, 3): lines of every kind for the VAE, no thing, no caption."""
    ground = tuple(int(c) for c in (rng.integers(0, 256, 3) if rng.random() < 0.5 else (255, 255, 255)))
    image = Image.new("RGB", (_CANVAS, _CANVAS), ground)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 7))):
        ink = tuple(int(c) for c in (rng.integers(0, 256, 3) if rng.random() < 0.5 else (0, 0, 0)))
        knots = rng.uniform(0, _CANVAS, (int(rng.integers(2, 5)), 2))
        line = wobble(knots / 100, rng, 0.1) * 100
        draw.line([tuple(p) for p in line], fill=ink, width=int(rng.integers(4, 22)), joint="curve")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
