"""The types of training data from any source: examples with a caption and pixels, collected in a `Dataset`."""

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
PROCESSING = b"28x28, RGB, bicubic, inverted\0"  # part of every digest: change it whenever `process` changes


@dataclass(frozen=True)
class Row:
    """A row of the data table. attention: likely to be a mistake."""

    label: str
    text: str
    attention: bool = False


class Example(Protocol):
    """One training picture. The two kinds are `Drawing` below and `Picture` in picture.py."""

    @property
    def caption(self) -> str: ...

    @property
    def captions(self) -> tuple[str, ...]:
        """One of these is drawn each time the picture is used; most pictures have only one, `caption`."""

    @property
    def repeats(self) -> int:
        """How often it occurs in an epoch."""

    @property
    def reg(self) -> bool:
        """Whether it is for regularisation (DreamBooth's prior preservation), drawn as often as all the others together."""

    @property
    def weight(self) -> float:
        """Weight of its loss."""

    @property
    def masked(self) -> bool: ...

    @property
    def category(self) -> str:
        """The word for its subject; "" if the data has none."""

    @property
    def source(self) -> str:
        """Its location, for messages: "apple.npy row 123" or a path."""

    @property
    def digest(self) -> str:
        """sha256, in hex, of everything that affects `pixels()`: contents, never paths."""

    @property
    def identity(self) -> str:
        """Digest, captions and everything else that affects training on it, ended by a zero character."""

    def raw(self) -> np.ndarray:
        """The original: uint8 (28, 28) for a drawing, uint8 (height, width, 3) for a picture."""

    def shape(self, resolution: int) -> tuple[int, int]:
        """Height and width for training: about resolution x resolution pixels."""

    def pixels(self, resolution: int) -> np.ndarray:
        """Training pixels: uint8 (*shape, 3), RGB, not mirrored."""

    def mask(self, resolution: int, down: int) -> np.ndarray | None:
        """Loss weights of latents, float32 (height / down, width / down), 0..1; None for equal weights."""


def process(bitmap: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 (28, 28), white on black -> uint8 (resolution, resolution, 3), black on white (section 2.2).

    "We first map our 28x28x1 bitmap data into [...] RGB images. Then we resize images to 512x512x3 using bicubic
    interpolation [...] we invert colours of all images." Mirroring and normalisation follow when pictures are encoded.
    Bicubic is Pillow's, clipped to 0..255 (like torchvision's on PIL images).
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
    """The training and held-out data of a run.

    train, held_out: examples in a fixed order that depends on recipe and data. trigger: the words that captions begin with.
    notes: one-line notices for the user. seen: the categories trained on; unseen: the data's other categories (both sorted;
    empty for pictures). attribution: the credit required by the data's licence, or "". table: facts about the pictures, one
    per row; problems: unusable files, one per line: training does not start if there are any.
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
        """Pictures in an epoch: each as often as its repeats, and equally many for regularisation."""
        own = sum(example.repeats for example in self.train if not example.reg)
        return own * 2 if any(example.reg for example in self.train) else own

    @property
    def without_reg(self) -> list[Example]:
        """The training pictures that are not for regularisation."""
        return [example for example in self.train if not example.reg]


def common_shape(examples: Sequence[Example], resolution: int) -> tuple[int, int]:
    """The most frequent height and width of training pictures, counted with their repeats."""
    counts: Counter[tuple[int, int]] = Counter()
    for example in examples:
        counts[example.shape(resolution)] += example.repeats
    return max(counts, key=lambda shape: (counts[shape], shape[0] * shape[1], shape), default=(resolution, resolution))


def fingerprint(dataset: Dataset) -> str:
    """sha256 over every picture's `identity`, training and held out, in order."""
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.held_out):
        for example in part:
            digest.update(example.identity.encode())
        digest.update(b"\1")
    return digest.hexdigest()
