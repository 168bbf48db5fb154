"""The pictures of an evaluation, each a PNG in a folder; existing ones are not drawn again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from convert.errors import JobError
from trainer.evaluate.subjects import Subject
from trainer.sample.grid import write_png
from trainer.sample.sampler import Sampler
from trainer.terminal import progress, say

View = tuple[Subject, float]
"""A subject at a scale."""


class Gallery:
    """Draws and reads pictures, at most `batch` at once and all of one scale.

    A batch is drawn whole, so a stop changes no number.
    """

    def __init__(self, folder: Path, sampler: Sampler, batch: int) -> None:
        self.folder, self.sampler, self.batch = folder, sampler, batch

    def path(self, subject: Subject, scale: float) -> Path:
        words = re.sub(r"[^a-z0-9]+", "-", subject.prompt.lower()).strip("-")[:40]
        digest = hashlib.sha256(subject.prompt.encode()).hexdigest()[:6]
        return self.folder / f"{words}-{digest}-seed{subject.seed}-scale{scale:g}.png"

    def draw(self, subjects: Iterable[Subject], scales: Sequence[float]) -> int:
        """Draw every subject at every scale that is missing; returns how many pictures were drawn."""
        self.folder.mkdir(parents=True, exist_ok=True)
        distinct = list({self.path(s, 0): s for s in subjects}.values())
        size = ceil(len(distinct) / ceil(len(distinct) / self.batch))  # parts as equal as they can be
        batches = [[(s, scale) for s in distinct[k : k + size]] for scale in scales for k in range(0, len(distinct), size)]
        total = len(distinct) * len(scales)
        lacking = [some for some in batches if not all(self.path(*view).exists() for view in some)]
        wanted = sum(map(len, lacking))
        if wanted:
            there = f"; {total - wanted} are there" if total > wanted else ""
            say(f"{wanted} pictures to draw, {self.sampler.steps} steps each, {size} at once{there}")
        with progress(total, total - wanted, "drawing", "picture") as advance:
            for some in lacking:
                for (subject, scale), picture in zip(some, self._sample(some), strict=True):
                    write_png(Image.fromarray(picture), self.path(subject, scale))
                advance(len(some))
        return wanted

    def _sample(self, views: Sequence[View]) -> np.ndarray:
        return self.sampler([s.prompt for s, _ in views], [s.seed for s, _ in views], scale=[scale for _, scale in views])

    def read(self, subject: Subject, scale: float) -> np.ndarray:
        """uint8 (H, W, 3). JobError if the file is damaged."""
        path = self.path(subject, scale)
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise JobError(f"{path}: cannot be read ({error}): delete it, and the same command draws it again") from error

    def read_all(self, subjects: Sequence[Subject], scales: Sequence[float]) -> np.ndarray:
        """uint8 (subjects, scales, H, W, 3)."""
        return np.stack([np.stack([self.read(subject, scale) for scale in scales]) for subject in subjects])
