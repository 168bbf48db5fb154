"""From pictures to numbers: each group's CLIP score, similarity and ink distance, per picture and as curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.records import Example
from trainer.evaluate.curves import by_name, curve
from trainer.evaluate.gallery import Gallery
from trainer.evaluate.ink import Ink
from trainer.evaluate.judge import Judge, clip_score, similarity
from trainer.evaluate.settings import Settings
from trainer.evaluate.subjects import Group


@dataclass(frozen=True)
class Measure:
    """What measures every group alike. `side`: of a reference in pixels; `real`: the drawings that `ink` was made from."""

    settings: Settings
    scales: list[float]
    gallery: Gallery
    clip: Judge
    image_clip: Judge
    ink: Ink
    side: int

    def group(self, group: Group) -> dict[str, Any]:
        """Plain data: a record per subject, a curve per measure, and the real drawings' own values."""
        subjects, names = group.subjects, [subject.name for subject in group.subjects]
        pictures = self.gallery.read_all(subjects, self.scales)
        flat = list(pictures.reshape(-1, *pictures.shape[2:]))
        features = {judge.identity: judge.images(flat).unflatten(0, pictures.shape[:2]) for judge in self._judges()}
        real = {name: self._real(examples) for name, examples in group.references.items()}
        score = self._scores(group, features[self.clip.identity])
        alike = np.stack([similarity(row, real[name][self.image_clip.identity]).double().numpy()
                          for name, row in zip(names, features[self.image_clip.identity], strict=True)])  # fmt: skip
        ink = np.array([[self.ink.distance(picture) for picture in row] for row in pictures])
        counted = list(dict.fromkeys(names))[: self.settings.prompts]
        prompted = [row for row, name in enumerate(names) if name in counted]
        drawn = slice(0, self.settings.per_scale)
        return {
            "clip_score": curve(by_name(score[prompted], [names[row] for row in prompted]), self.settings.seed).as_dict()
            | {"drawings": self._reference_score(group, counted, real)},
            "similarity": curve(alike[drawn], self.settings.seed).as_dict() | {"drawings": self._likeness(real)},
            "ink_distance": curve(ink[drawn], self.settings.seed).as_dict() | {"drawings": round(self.ink.own, 6)},
            "references": {name: [example.source for example in found] for name, found in group.references.items()},
            "subjects": [self._record(*row) for row in zip(subjects, score, alike, ink, strict=True)],
        }

    def _judges(self) -> list[Judge]:
        return list({judge.identity: judge for judge in (self.clip, self.image_clip)}.values())

    def _real(self, examples: list[Example]) -> dict[str, Tensor]:
        """Features of held-out examples by judge, (R, width) each."""
        pixels = [example.pixels(self.side) for example in examples]
        return {judge.identity: judge.images(pixels) for judge in self._judges()}

    def _scores(self, group: Group, features: Tensor) -> np.ndarray:
        """CLIP scores, float64 (subjects, scales)."""
        texts = self.clip.texts([subject.prompt for subject in group.subjects])
        return clip_score(features, texts[:, None, :]).double().numpy()

    def _reference_score(self, group: Group, counted: list[str], real: dict[str, dict[str, Tensor]]) -> float:
        """The held-out drawings' own CLIP score with the prompt of their category; each category counts once."""
        prompts = {subject.name: subject.prompt for subject in group.subjects}
        texts = self.clip.texts([prompts[name] for name in counted])
        means = [clip_score(real[name][self.clip.identity], text).mean() for name, text in zip(counted, texts, strict=True)]
        return round(float(torch.stack(means).mean()), 6)

    def _likeness(self, real: dict[str, dict[str, Tensor]]) -> float | None:
        """Mean cosine of a held-out drawing with the others of its category; None where each is alone."""
        features = [found[self.image_clip.identity] for found in real.values()]
        pairs = [f @ f.T for f in features if len(f) > 1]
        means = [(float(p.sum()) - len(p)) / (len(p) * (len(p) - 1)) for p in pairs]
        return round(float(np.mean(means)), 6) if means else None

    def _record(self, subject: Any, score: np.ndarray, alike: np.ndarray, ink: np.ndarray) -> dict[str, Any]:
        files = [f"{self.gallery.folder.name}/{self.gallery.path(subject, scale).name}" for scale in self.scales]
        values = {"clip_score": score, "similarity": alike, "ink_distance": ink}
        return {"name": subject.name, "prompt": subject.prompt, "seed": subject.seed, "pictures": files,
                **{key: [round(float(number), 6) for number in row] for key, row in values.items()}}
