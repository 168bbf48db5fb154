"""Training data, wherever it came from: examples with a caption and pixels, gathered in a `Dataset`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image, ImageOps

SIDE = 28  # pixels
ROW_BYTES = SIDE * SIDE
PROCESSING = b"28x28, RGB, bicubic, inverted\0"  # part of every digest: a change of `process` must change it


@dataclass(frozen=True)
class Row:
    """A line of the table of what is learnt. attention: it is likely to be a mistake."""

    label: str
    text: str
    attention: bool = False


class Example(Protocol):
    """One picture to learn from. The two kinds are `Drawing` below and `Picture` in picture.py."""

    @property
    def caption(self) -> str: ...

    @property
    def captions(self) -> tuple[str, ...]:
        """One of these is drawn each time the picture is learnt; most pictures have one, which is `caption`."""

    @property
    def repeats(self) -> int:
        """How often an epoch holds it."""

    @property
    def reg(self) -> bool:
        """Whether it is for regularisation (DreamBooth's prior preservation), drawn as often as all the others together."""

    @property
    def weight(self) -> float:
        """Of its loss."""

    @property
    def masked(self) -> bool: ...

    @property
    def category(self) -> str:
        """The word for what is on it; "" if the data has no word for it."""

    @property
    def source(self) -> str:
        """Where a person finds it: "apple.npy row 123" or a path."""

    @property
    def digest(self) -> str:
        """sha256, in hex, of everything that affects `pixels()`: of content, never of a path."""

    @property
    def identity(self) -> str:
        """Digest, captions and what else decides how it is learnt, ended by a zero character."""

    def raw(self) -> np.ndarray:
        """As it was found: uint8 (28, 28) for a drawing, uint8 (height, width, 3) for a picture."""

    def shape(self, resolution: int) -> tuple[int, int]:
        """Height and width in which it is learnt: about resolution x resolution pixels."""

    def pixels(self, resolution: int) -> np.ndarray:
        """As it is learnt: uint8 (*shape, 3), RGB, not mirrored."""

    def mask(self, resolution: int, down: int) -> np.ndarray | None:
        """Loss weights of latents, float32 (height / down, width / down), 0..1; None where all count alike."""


def process(bitmap: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 (28, 28), white on black -> uint8 (resolution, resolution, 3), black on white (section 2.2).

    "We first map our 28x28x1 bitmap data into [...] RGB images. Then we resize images to 512x512x3 using bicubic
    interpolation [...] we invert colours of all images." The mirroring and the normalisation that follow are drawn
    and done where pictures are encoded. Bicubic is Pillow's, clipped to 0..255 (so is torchvision's on PIL images).
    """
    rgb = Image.fromarray(np.ascontiguousarray(bitmap)).convert("RGB")
    large = rgb.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return np.asarray(ImageOps.invert(large))


@dataclass(frozen=True)
class Drawing:
    """One QuickDraw bitmap. `bitmap` is its 784 bytes, row by row, white strokes on black."""

    bitmap: bytes = field(repr=False)
    category: str
    caption: str
    source: str

    repeats: ClassVar[int] = 1
    reg: ClassVar[bool] = False
    weight: ClassVar[float] = 1.0
    masked: ClassVar[bool] = False

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.caption,)

    @property
    def identity(self) -> str:
        return f"{self.digest}\0{self.caption}\0"

    def shape(self, resolution: int) -> tuple[int, int]:
        return resolution, resolution

    def mask(self, resolution: int, down: int) -> None:
        return None

    def raw(self) -> np.ndarray:
        return np.frombuffer(self.bitmap, dtype=np.uint8).reshape(SIDE, SIDE)

    def pixels(self, resolution: int) -> np.ndarray:
        return process(self.raw(), resolution)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(PROCESSING + self.bitmap).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """All that a run learns from and is measured on.

    train, held_out: examples in a fixed order, decided by recipe and data. trigger: the words that captions begin with.
    notes: one-line notices for the user. seen: the categories trained on; unseen: the others that the data has (both
    sorted; empty for own pictures). attribution: whom the data's licence asks to be named, or "". table: what is learnt
    from own pictures, a row a fact; problems: files that cannot be used, a line each: nothing is trained while there are any.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    trigger: str
    notes: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    attribution: str = ""
    table: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def per_epoch(self) -> int:
        """Pictures that an epoch holds: each as often as its repeats say, and as many for regularisation."""
        own = sum(example.repeats for example in self.train if not example.reg)
        return own * 2 if any(example.reg for example in self.train) else own

    @property
    def learnt(self) -> list[Example]:
        """Those that are not for regularisation."""
        return [example for example in self.train if not example.reg]


def common_shape(examples: Sequence[Example], resolution: int) -> tuple[int, int]:
    """Height and width in which most of the pictures are learnt, each counted as often as its repeats say."""
    counts: Counter[tuple[int, int]] = Counter()
    for example in examples:
        counts[example.shape(resolution)] += example.repeats
    return max(counts, key=lambda shape: (counts[shape], shape[0] * shape[1], shape), default=(resolution, resolution))


def fingerprint(dataset: Dataset) -> str:
    """sha256 over every picture's digest, captions and the rest of its `identity`, training and held out, in order."""
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.held_out):
        for example in part:
            digest.update(example.identity.encode())
        digest.update(b"\1")
    return digest.hexdigest()
