"""The miniature world's things: sixteen categories, each a few parametric outlines.

Coordinates are x right, y down, about [-1, 1]. A `Part` is one outline; everything that draws (shaded photos, flat icons,
crayon lines, silhouettes, doodles) draws the same parts, so a category keeps its shape across styles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAIN = "main"  # the paint of the part that a caption's colour word speaks of


@dataclass(frozen=True)
class Part:
    """One outline: `points` (N, 2) float64; `paint` a colour name or `MAIN`; `closed` False for a line without inside;
    `drawn` False for what a person with a pen would leave out."""

    points: np.ndarray
    paint: str = MAIN
    closed: bool = True
    drawn: bool = True


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> np.ndarray:
    """Points on an ellipse from `start` to `end`, in degrees clockwise from the right."""
    t = np.radians(np.linspace(start, end, max(8, int(abs(end - start) / 9)) + 1))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def _path(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _turn(points: np.ndarray, degrees: float, about: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    t = np.radians(degrees)
    rotation = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
    return (points - about) @ rotation + about


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return _path((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0))


def apple(rng: np.random.Generator) -> list[Part]:
    t = np.radians(np.linspace(-90, 270, 49))
    r = 0.78 - 0.2 * np.exp(-(((t - np.radians(-90)) % (2 * np.pi)) / 0.45) ** 2)
    r = r - 0.2 * np.exp(-(((np.radians(270) - t) % (2 * np.pi)) / 0.45) ** 2) * (t > 0)
    body = np.stack([r * np.cos(t) * rng.uniform(0.95, 1.1), 0.15 + r * np.sin(t)], axis=1)
    body[-1] = body[0]
    lean = rng.uniform(-0.15, 0.15)
    stem = _path((0, -0.42), (0.3 * lean, -0.65), (lean, -0.92))
    leaf = _turn(_ellipse(lean + 0.32, -0.78, 0.27, 0.12), rng.uniform(5, 35), (lean, -0.75))
    return [Part(body), Part(stem, "brown", closed=False), Part(leaf, "green")]


def house(rng: np.random.Generator) -> list[Part]:
    w, top, peak = rng.uniform(0.6, 0.75), rng.uniform(-0.25, -0.1), rng.uniform(-1.0, -0.8)
    door = rng.uniform(-0.4, 0.1)
    parts = [
        Part(_box(-w, top, w, 0.85)),
        Part(_path((-w - 0.18, top), (0, peak), (w + 0.18, top), (-w - 0.18, top)), "brown"),
        Part(_box(door, 0.3, door + 0.3, 0.85), "grey"),
    ]
    side = door + 0.45 if door < -0.1 else door - 0.45
    return [*parts, Part(_box(side, 0.1, side + 0.3, 0.4), "sky")]


def star(rng: np.random.Generator) -> list[Part]:
    inner, turn = rng.uniform(0.38, 0.5), rng.uniform(-10, 10)
    t = np.radians(np.arange(11) * 36 - 90)
    r = np.where(np.arange(11) % 2 == 0, 0.95, 0.95 * inner)
    return [Part(_turn(np.stack([r * np.cos(t), r * np.sin(t)], axis=1), turn))]


def fish(rng: np.random.Generator) -> list[Part]:
    h, side = rng.uniform(0.38, 0.52), rng.choice([-1.0, 1.0])
    body = _ellipse(-0.2, 0, 0.7, h)
    tail = _path((0.4, 0), (0.92, -h), (0.8, 0), (0.92, h), (0.4, 0))
    eye = _ellipse(-0.55, -0.12, 0.08, 0.08)
    fin = _path((-0.3, -h * 0.95), (-0.05, -h - 0.25), (0.15, -h * 0.85), (-0.3, -h * 0.95))
    flip = np.array([side, 1.0])
    return [Part(tail * flip), Part(fin * flip), Part(body * flip), Part(eye * flip, "black")]


def tree(rng: np.random.Generator) -> list[Part]:
    w = rng.uniform(0.1, 0.16)
    trunk = Part(_box(-w, 0.2, w, 0.95), "brown")
    if rng.random() < 0.35:
        return [trunk, Part(_path((-0.62, 0.35), (0, -0.95), (0.62, 0.35), (-0.62, 0.35)))]
    return [trunk, Part(_bumps(0, -0.3, 0.52, 0.5, int(rng.integers(6, 9)), rng.uniform(0, 60)))]


def _bumps(cx: float, cy: float, rx: float, ry: float, count: int, turn: float) -> np.ndarray:
    """A closed scalloped outline: `count` round bumps around an ellipse."""
    t = np.linspace(0, 360, count * 8 + 1)
    r = 1.0 + 0.22 * np.abs(np.sin(np.radians(t * count / 2)))
    a = np.radians(t + turn)
    return np.stack([cx + rx * r * np.cos(a), cy + ry * r * np.sin(a)], axis=1)


def sun(rng: np.random.Generator) -> list[Part]:
    r, count, turn = rng.uniform(0.42, 0.52), int(rng.integers(8, 12)), rng.uniform(0, 40)
    rays = []
    for k in range(count):
        a = np.radians(turn + 360 * k / count)
        direction = np.array([np.cos(a), np.sin(a)])
        rays.append(Part(np.stack([direction * (r + 0.14), direction * 0.97]), closed=False))
    return [Part(_ellipse(0, 0, r, r)), *rays]


def cloud(rng: np.random.Generator) -> list[Part]:
    left, right = rng.uniform(0.28, 0.36), rng.uniform(0.26, 0.34)
    outline = np.concatenate([
        _ellipse(-0.58, 0.2, left, left, 90, 250),
        _ellipse(-0.2, -0.15, 0.4, rng.uniform(0.36, 0.48), 190, 320),
        _ellipse(0.3, -0.02, 0.34, 0.36, 240, 350),
        _ellipse(0.62, 0.22, right, right * 0.95, -70, 90),
    ])
    return [Part(np.concatenate([outline, outline[:1]]))]


def car(rng: np.random.Generator) -> list[Part]:
    roof, side = rng.uniform(-0.5, -0.38), rng.choice([-1.0, 1.0])
    flip = np.array([side, 1.0])
    body = _path((-0.95, 0.35), (-0.95, 0.02), (-0.62, -0.06), (-0.4, roof), (0.3, roof), (0.55, -0.06), (0.95, 0.05),
                 (0.95, 0.35), (-0.95, 0.35))
    window = _path((-0.45, -0.05), (-0.3, roof + 0.12), (0.22, roof + 0.12), (0.38, -0.05), (-0.45, -0.05))
    wheel = rng.uniform(0.2, 0.25)
    parts = [Part(body), Part(window, "sky"), Part(_ellipse(-0.52, 0.38, wheel, wheel), "black"),
             Part(_ellipse(0.52, 0.38, wheel, wheel), "black")]
    return [Part(p.points * flip, p.paint) for p in parts]


def flower(rng: np.random.Generator) -> list[Part]:
    count, turn = int(rng.integers(5, 8)), rng.uniform(0, 60)
    stem = Part(_path((0, -0.1), (rng.uniform(-0.08, 0.08), 0.45), (0, 0.97)), "green", closed=False)
    leaf = Part(_turn(_ellipse(0.25, 0.6, 0.24, 0.1), 30, (0, 0.6)), "green")
    petals = []
    for k in range(count):
        petals.append(Part(_turn(_ellipse(0.36, -0.35, 0.24, 0.62 / count ** 0.5 * 0.7), turn + 360 * k / count, (0, -0.35))))
    return [stem, leaf, *petals, Part(_ellipse(0, -0.35, 0.17, 0.17), "yellow")]


def mushroom(rng: np.random.Generator) -> list[Part]:
    w, h = rng.uniform(0.75, 0.88), rng.uniform(0.7, 0.85)
    cap = np.concatenate([_ellipse(0, 0.05, w, h, 180, 360), [[-w, 0.05]]])
    s = rng.uniform(0.2, 0.28)
    stem = _path((-s, 0.05), (-s * 1.15, 0.85), (s * 1.15, 0.85), (s, 0.05), (-s, 0.05))
    dots = [Part(_ellipse(x, y, 0.12, 0.1), "white") for x, y in ((-0.4, -0.2), (0.05, -0.45), (0.42, -0.15))]
    return [Part(stem, "cream"), Part(cap), *dots]


def umbrella(rng: np.random.Generator) -> list[Part]:
    w, h = rng.uniform(0.82, 0.95), rng.uniform(0.65, 0.8)
    scallops = [_ellipse(w * (2 / 3 - k * 2 / 3), -0.05, w / 3, 0.13, 0, -180) for k in range(3)]
    dome = np.concatenate([_ellipse(0, -0.05, w, h, 180, 360), *scallops])
    hook = rng.choice([-1.0, 1.0])
    shaft = np.concatenate([_path((0, -0.15), (0, 0.7)), _ellipse(0.15, 0.7, 0.15, 0.2, 180, 10)]) * (hook, 1.0)
    return [Part(shaft, "black", closed=False), Part(dome)]


def cup(rng: np.random.Generator) -> list[Part]:
    w, base, side = rng.uniform(0.5, 0.6), rng.uniform(0.3, 0.45), rng.choice([-1.0, 1.0])
    flip = np.array([side, 1.0])
    handle = np.concatenate([_ellipse(0.48, 0.02, 0.42, 0.36, -75, 75), _ellipse(0.46, 0.02, 0.26, 0.22, 75, -75)])
    body = _path((-w, -0.6), (w, -0.6), (base, 0.75), (-base, 0.75), (-w, -0.6))
    return [Part(np.concatenate([handle, handle[:1]]) * flip), Part(body * flip),
            Part(_ellipse(0, -0.6, w, 0.13), "brown")]


def moon(rng: np.random.Generator) -> list[Part]:
    bite = rng.uniform(0.25, 0.45)
    outer = _ellipse(0, 0, 0.9, 0.9, 60, 300)
    tip = outer[0]
    reach = np.degrees(np.arctan2(tip[1], tip[0] - bite))
    inner = _ellipse(bite, 0, np.hypot(tip[0] - bite, tip[1]), np.hypot(tip[0] - bite, tip[1]), 360 - reach, reach)
    return [Part(_turn(np.concatenate([outer, inner]) - [-0.25, 0], rng.uniform(-25, 25)))]


def sailboat(rng: np.random.Generator) -> list[Part]:
    side, mast = rng.choice([-1.0, 1.0]), rng.uniform(-0.95, -0.85)
    flip = np.array([side, 1.0])
    hull = _path((-0.85, 0.4), (0.85, 0.4), (0.5, 0.85), (-0.55, 0.85), (-0.85, 0.4))
    big = _path((0.06, mast), (0.06, 0.25), (0.72, 0.25), (0.06, mast))
    small = _path((-0.06, mast + 0.2), (-0.06, 0.25), (-0.55, 0.25), (-0.06, mast + 0.2))
    return [Part(_path((0, mast), (0, 0.4)) * flip, "brown", closed=False), Part(big * flip, "white"),
            Part(small * flip, "cream"), Part(hull * flip)]


def ice_cream(rng: np.random.Generator) -> list[Part]:
    w = rng.uniform(0.42, 0.5)
    cone = _path((-w, -0.05), (w, -0.05), (0, 0.98), (-w, -0.05))
    scoop = np.concatenate([_ellipse(0, -0.1, w * 1.15, rng.uniform(0.75, 0.85), 170, 370), [[-w * 1.13, 0.04]]])
    lines = [Part(_path((-0.25, -0.05), (0.14, 0.62)), "brown", closed=False),
             Part(_path((0.25, -0.05), (-0.14, 0.62)), "brown", closed=False)]
    return [Part(cone, "tan"), *lines, Part(scoop)]


def butterfly(rng: np.random.Generator) -> list[Part]:
    spread = rng.uniform(18, 32)
    upper, lower = _ellipse(0.5, 0, 0.45, 0.32), _ellipse(0.4, 0, 0.34, 0.25)
    wings = []
    for side in (1.0, -1.0):
        flip = np.array([side, 1.0])
        wings += [Part((_turn(upper, spread) + [0, -0.1]) * flip), Part((_turn(lower, -spread - 18) + [0, 0.1]) * flip)]
        wings.append(Part(_path((0.03, -0.45), (0.12, -0.7), (0.25, -0.85)) * flip, "black", closed=False))
    return [*wings, Part(_ellipse(0, 0, 0.08, 0.5), "black")]


CATEGORIES: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "apple": apple, "butterfly": butterfly, "car": car, "cloud": cloud, "cup": cup, "fish": fish, "flower": flower,
    "house": house, "ice cream": ice_cream, "moon": moon, "mushroom": mushroom, "sailboat": sailboat, "star": star,
    "sun": sun, "tree": tree, "umbrella": umbrella,
}


def thing(category: str, rng: np.random.Generator) -> list[Part]:
    """The parts of one `category`, back to front, with the free parameters drawn from `rng`. KeyError if unknown."""
    return CATEGORIES[category](rng)
