"""Computes each measure per picture and as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.records import Example
from trainer.evaluate.copying import among, copying, diversity
from trainer.evaluate.curves import curve, numbers
from trainer.evaluate.gallery import Gallery
from trainer.evaluate.ink import Ink
from trainer.evaluate.judge import ImageJudge, Judge, clip_score, similarity
from trainer.evaluate.results import Complex, Curve, Distance, GroupMeasures, Measured, Nearest, Numbers, SubjectRecord
from trainer.evaluate.settings import Settings
from trainer.evaluate.statistics import jackknife, mmd
from trainer.evaluate.subjects import Group, Plan, Subject

Features = dict[str, Tensor]
"""Unit features of the same pictures, keyed by the judge's identity."""


@dataclass(frozen=True)
class Measure:
    """The same measurement for every group. `side`: of a real picture in pixels; `ink`: from the held-out drawings."""

    settings: Settings
    scales: list[float]
    gallery: Gallery
    clip: Judge
    image_clip: Judge
    dino: ImageJudge | None
    ink: Ink
    side: int

    def group(self, group: Group) -> GroupMeasures:
        """Plain data: a record per subject, a curve per measure, and the real pictures' own values."""
        subjects, names = group.subjects, [subject.name for subject in group.subjects]
        pictures = self.gallery.read_all(subjects, self.scales)
        drawn = self._features(list(pictures.reshape(-1, *pictures.shape[2:])), pictures.shape[:2])
        real = {name: self._real(examples) for name, examples in group.references.items()}
        values: dict[Measured, np.ndarray] = {
            "clip_score": self._scores([s.prompt for s in subjects], drawn),
            "prompt_score": self._scores([s.plain for s in subjects], drawn),
            "similarity": self._alike(self.image_clip, names, drawn, real),
            "ink_distance": np.array([[self.ink.distance(picture) for picture in row] for row in pictures])}
        if self.dino:
            values["dino_similarity"] = self._alike(self.dino, names, drawn, real)
        counted = list(dict.fromkeys(names))[: self.settings.prompts]
        prompted = [k for k, name in enumerate(names) if name in counted]
        rows = {key: prompted if key == "clip_score" else range(min(len(names), self.settings.per_scale)) for key in values}
        curves = {key: curve(found[rows[key]], [names[k] for k in rows[key]], self.settings.seed)
                  for key, found in values.items()}
        self._add_real(curves, group, counted, real)
        measured: GroupMeasures = {
            "clip_score": curves["clip_score"], "prompt_score": curves["prompt_score"], "similarity": curves["similarity"],
            "ink_distance": curves["ink_distance"],
            "cmmd": self._distance(names, drawn[self.image_clip.identity], group, real),
            "references": {name: [example.source for example in found] for name, found in group.references.items()},
            "own_prompt_score": self._own_scores({s.name: s.plain for s in subjects}, real),
            "subjects": [self._record(subject, {key: numbers(found[k]) for key, found in values.items()})
                         for k, subject in enumerate(subjects)]}
        if self.dino:
            measured["dino_similarity"] = curves["dino_similarity"]
        if group.training:
            measured["nearest_training"] = self._copying(group, drawn, real)
        return measured

    def complex(self, plan: Plan) -> dict[str, Complex]:
        """Figures 8 and 9 in numbers: complex prompts with and without the trigger words, against all held-out pictures.

        For "with" and "without": curves of similarity, ink distance and prompt score, and half_way: the smallest scale
        whose ink distance is at least halfway from the base's to that of the real drawings, null if there is none.
        """
        references = [example for group in plan.groups for part in group.references.values() for example in part]
        real = self._real(references)[self.image_clip.identity]
        found: dict[str, Complex] = {}
        for key, subjects in (("with", plan.with_trigger), ("without", plan.without_trigger)):
            if not subjects:
                continue
            pictures, names = self.gallery.read_all(subjects, self.scales), [subject.name for subject in subjects]
            drawn = self._features(list(pictures.reshape(-1, *pictures.shape[2:])), pictures.shape[:2])
            ink = np.array([[self.ink.distance(picture) for picture in row] for row in pictures])
            alike = np.stack([similarity(row, real).double().numpy() for row in drawn[self.image_clip.identity]])
            scores = self._scores([s.plain for s in subjects], drawn)
            half = ink.mean(axis=0) <= (ink.mean(axis=0)[0] + self.ink.own) / 2
            similar, inked, prompted = (curve(values, names, self.settings.seed) for values in (alike, ink, scores))
            found[key] = {"similarity": similar, "ink_distance": inked, "prompt_score": prompted,
                          "half_way": self.scales[int(half.argmax())] if half.any() else None}
        return found

    def diversity(self, plan: Plan) -> Curve | None:
        """The diversity of one prompt's pictures over seeds; drawings: that of real pictures of one category."""
        subjects = list({(s.prompt, s.seed): s for part in (plan.one_prompt, *(g.subjects for g in plan.groups))
                         for s in part}.values())  # fmt: skip
        pictures = self.gallery.read_all(subjects, self.scales)
        drawn = self.image_clip.images(list(pictures.reshape(-1, *pictures.shape[2:]))).unflatten(0, pictures.shape[:2])
        found = diversity(drawn, [subject.prompt for subject in subjects], self.settings.seed)
        real = [self._real(part)[self.image_clip.identity] for group in plan.groups for part in group.references.values()]
        own = [1 - among(features) for features in real if len(features) > 1]
        if found:
            found["drawings"] = round(float(np.mean(own)), 6) if own else None
        return found

    def _judges(self) -> list[ImageJudge]:
        judges = [self.clip, self.image_clip, *([self.dino] if self.dino else [])]
        return list({judge.identity: judge for judge in judges}.values())

    def _features(self, pictures: Sequence[np.ndarray], shape: Sequence[int]) -> Features:
        return {judge.identity: judge.images(pictures).unflatten(0, tuple(shape)) for judge in self._judges()}

    def _real(self, examples: Sequence[Example]) -> Features:
        """Features of real pictures by judge, (R, width) each."""
        return self._features([example.pixels(self.side) for example in examples], (len(examples),))

    def _scores(self, texts: list[str], drawn: Features) -> np.ndarray:
        """CLIP scores, float64 (subjects, scales), with a text for each subject."""
        return clip_score(drawn[self.clip.identity], self.clip.texts(texts)[:, None, :]).double().numpy()

    def _alike(self, judge: ImageJudge, names: list[str], drawn: Features, real: dict[str, Features]) -> np.ndarray:
        """Similarities to the held-out pictures, float64 (subjects, scales)."""
        return np.stack([similarity(row, real[name][judge.identity]).double().numpy()
                         for name, row in zip(names, drawn[judge.identity], strict=True)])

    def _add_real(self, curves: dict[Measured, Curve], group: Group, counted: list[str], real: dict[str, Features]) -> None:
        """Put the held-out pictures' own value of each measure into its curve, as `drawings`."""
        subjects = {subject.name: subject for subject in group.subjects}
        own: dict[Measured, float | None] = {
            "clip_score": _mean(self._own_scores({name: subjects[name].prompt for name in counted}, real)),
            "prompt_score": _mean(self._own_scores({name: subjects[name].plain for name in counted}, real)),
            "similarity": _own_likeness(real, self.image_clip), "ink_distance": round(self.ink.own, 6)}
        if self.dino:
            own["dino_similarity"] = _own_likeness(real, self.dino)
        for key, found in curves.items():
            found["drawings"] = own[key]

    def _own_scores(self, texts: dict[str, str], real: dict[str, Features]) -> dict[str, float]:
        """By category: the mean CLIP score of its held-out pictures with its text."""
        return {name: round(float(clip_score(real[name][self.clip.identity], text).mean()), 6)
                for name, text in zip(texts, self.clip.texts(list(texts.values())), strict=True)}

    def _distance(self, names: list[str], drawn: Tensor, group: Group, real: dict[str, Features]) -> Distance:
        """CMMD between pictures and held-out pictures at every scale, with a jackknife interval over categories."""
        distinct = list(dict.fromkeys(names))

        def statistic(used: np.ndarray) -> np.ndarray:
            kept = [name for name, use in zip(distinct, used, strict=True) if use]
            rows = [k for k, name in enumerate(names) if name in kept]
            once = {e.digest: f for name in kept
                    for e, f in zip(group.references[name], real[name][self.image_clip.identity], strict=True)}
            others = torch.stack(list(once.values())).double().numpy()
            if min(len(rows), len(others)) < 2:
                return np.full(len(self.scales), np.nan)
            return np.array([mmd(drawn[rows, k].double().numpy(), others) for k in range(len(self.scales))])

        estimate, low, high = jackknife(statistic, len(distinct))
        return {"mean": numbers(estimate), "low": numbers(low), "high": numbers(high), "n": len(names),
                "categories": len(distinct), "drawings": 0.0}

    def _copying(self, group: Group, drawn: Features, real: dict[str, Features]) -> Nearest:
        key = self.image_clip.identity
        train = {name: self._real(examples)[key] for name, examples in group.training.items()}
        held_out = {name: found[key] for name, found in real.items()}
        names = [subject.name for subject in group.subjects]
        return copying(drawn[key], names, train, held_out, self.settings.seed)

    def _record(self, subject: Subject, values: dict[Measured, Numbers]) -> SubjectRecord:
        files = [f"{self.gallery.folder.name}/{self.gallery.path(subject, scale).name}" for scale in self.scales]
        record: SubjectRecord = {
            "name": subject.name, "prompt": subject.prompt, "plain": subject.plain, "seed": subject.seed, "pictures": files,
            "clip_score": values["clip_score"], "prompt_score": values["prompt_score"], "similarity": values["similarity"],
            "ink_distance": values["ink_distance"]}
        if self.dino:
            record["dino_similarity"] = values["dino_similarity"]
        return record


def _mean(scores: dict[str, float]) -> float:
    """Each category counts once."""
    return round(float(np.mean(list(scores.values()))), 6)


def _own_likeness(real: dict[str, Features], judge: ImageJudge) -> float | None:
    """Mean cosine of a held-out picture with the others of its category; None if every category has only one."""
    means = [among(found[judge.identity]) for found in real.values() if len(found[judge.identity]) > 1]
    return round(float(np.mean(means)), 6) if means else None
