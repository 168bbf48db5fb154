"""Prompts and seeds to draw, and the held-out and training pictures to compare with, chosen by the settings' seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from convert.errors import JobError
from trainer.data import load_dataset
from trainer.data.picture import Picture
from trainer.data.records import Dataset, Example, common_shape
from trainer.evaluate.settings import Settings
from trainer.recipe import Recipe
from trainer.rng import Stream

T = TypeVar("T")
SEEN, UNSEEN, HELD_OUT = "seen", "unseen", "held-out captions"
NO_UNSEEN = "the data has no categories that were not trained on: only the seen ones are measured"
MOST_TRAINING = 200
"""Most training pictures among which the nearest to a picture is searched."""


@dataclass(frozen=True)
class Subject:
    """One prompt with one seed; drawn at every scale from the same noise."""

    name: str
    """the category, or the caption: what intervals resample"""
    prompt: str
    seed: int
    plain: str = ""
    """the prompt without its trigger words"""


@dataclass(frozen=True)
class Group:
    """Pictures measured together, and the real ones they are measured against."""

    kind: str
    """`SEEN`, `UNSEEN` or, for own pictures, `HELD_OUT`"""
    subjects: list[Subject]
    references: dict[str, list[Example]]
    """name -> held-out examples of the same category, at most `drawings` of them"""
    training: dict[str, list[Example]] = field(default_factory=dict)
    """name -> training examples of the same category; empty for categories that were not trained on"""


@dataclass(frozen=True)
class Plan:
    """All subjects of an evaluation."""

    groups: list[Group]
    one_prompt: list[Subject]
    """figure 5: seeds of one prompt"""
    with_trigger: list[Subject]
    """figure 8: complex prompts behind the trigger words"""
    without_trigger: list[Subject]
    """figure 9: the same prompts and seeds without them"""
    notes: list[str] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    """height and width of a picture in pixels"""

    def fingerprint(self) -> str:
        """sha256, hex, of the references' contents, and of the shape if it is not square."""
        found = [example.digest for group in self.groups for part in group.references.values() for example in part]
        found += [] if self.shape[0] == self.shape[1] else [f"{self.shape}"]
        return hashlib.sha256(" ".join(found).encode()).hexdigest()

    def subjects(self) -> list[Subject]:
        """Every subject once, in drawing order."""
        parts = [self.one_prompt, *(group.subjects for group in self.groups), self.with_trigger, self.without_trigger]
        return list({(s.prompt, s.seed): s for part in parts for s in part}.values())


def make_plan(settings: Settings, recipe: Recipe, *, side: int, cache: Path, say: Callable[[str], None]) -> Plan:
    """Choose subjects and references for an adapter trained by `recipe` on pictures of about `side` x `side` pixels.

    All pictures have one shape, the one that most were trained in, so that drawn and real pictures differ only in
    their contents.

    Raises:
        JobError: the data has no held-out drawings or pictures.
    """
    dataset = load_dataset(recipe, cache=cache, say=say)
    shape = common_shape(dataset.without_reg, side)
    dataset = replace(dataset, train=_in_shape(dataset.train, shape), held_out=_in_shape(dataset.held_out, shape))
    groups = _drawn(settings, recipe, dataset, cache, say) if dataset.seen else _own(settings, recipe, dataset)
    first = groups[0].subjects
    apple = next((subject for subject in first if subject.name == "apple"), first[0])
    notes = [] if len(groups) > 1 or not dataset.seen else [NO_UNSEEN]
    plain = [Subject(text, text, settings.seed + k, text) for k, text in enumerate(settings.complex)]
    triggered = [replace(subject, prompt=f"{dataset.trigger} {subject.name}") for subject in plain if dataset.trigger]
    return Plan(groups=groups, one_prompt=[replace(apple, seed=settings.seed + k) for k in range(settings.seeds)],
                with_trigger=triggered, without_trigger=plain, notes=notes, shape=shape)


def _in_shape(examples: Sequence[Example], shape: tuple[int, int]) -> list[Example]:
    return [replace(e, only_shape=shape) if isinstance(e, Picture) else e for e in examples]


def _drawn(settings: Settings, recipe: Recipe, dataset: Dataset, cache: Path, say: Callable[[str], None]) -> list[Group]:
    """Seen and unseen categories of drawings."""
    most = max(settings.prompts, settings.per_scale)
    chosen = {kind: _some(names, most, settings.seed, key)
              for kind, names, key in ((SEEN, dataset.seen, Stream.SEEN), (UNSEEN, dataset.unseen, Stream.UNSEEN)) if names}
    names = ",".join(name for part in chosen.values() for name in part)
    # all else as in training: the 30 % part must be the one that training held out
    real = load_dataset(replace(recipe, categories=names), cache=cache, say=say, held_out_rows=settings.drawings)
    references, trained = by_category(real.held_out), by_category(real.train)
    groups = []
    for kind, part in chosen.items():
        having = [name for name in part if name in references]
        subjects = [Subject(name, f"{dataset.trigger} {name}", settings.seed + k, name) for k, name in _cycle(having, most)]
        if subjects:
            training = {name: trained[name][:MOST_TRAINING] for name in having} if kind == SEEN else {}
            groups.append(Group(kind, subjects, {name: references[name] for name in having}, training))
    if not groups:
        raise JobError(f"--data {recipe.data}: no category has held-out drawings (30 % of each): more drawings are needed")
    return groups


def _own(settings: Settings, recipe: Recipe, dataset: Dataset) -> list[Group]:
    """Held-out captions of the user's own pictures, each against the held-out pictures of its subfolder or all of them."""
    held_out = dataset.held_out
    if not held_out:
        raise JobError(f"--data {recipe.data}: no pictures were held out from training to compare with: train with "
                       "--held-out 0.3, or give --data and --held-out here for other pictures")
    order = np.random.default_rng([settings.seed, Stream.PROMPTS]).permutation(len(held_out))
    references, trained = by_category(held_out), by_category(dataset.train)
    chosen = [held_out[row] for row in order]
    most = max(settings.prompts, settings.per_scale)
    subjects = [Subject(e.caption, e.caption, settings.seed + k, _without(e.caption, dataset.trigger))
                for k, e in _cycle(chosen, most)]  # fmt: skip
    category = {example.caption: example.category for example in chosen}
    names = [subject.name for subject in subjects]
    training = {name: trained.get(category[name], list(dataset.train))[:MOST_TRAINING] for name in names}
    return [Group(HELD_OUT, subjects, {name: references[category[name]][: settings.drawings] for name in names}, training)]


def _without(caption: str, trigger: str) -> str:
    """The caption without its trigger words; unchanged if nothing would be left."""
    return caption.removeprefix(trigger).strip(" ,") or caption


def by_category(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """The examples by their category, in order."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.category, []).append(example)
    return found


def _some(names: Sequence[str], most: int, seed: int, key: int) -> list[str]:
    order = np.random.default_rng([seed, key]).permutation(len(names))
    return [names[row] for row in order[:most]]


def _cycle(things: list[T], count: int) -> list[tuple[int, T]]:
    return [(k, things[k % len(things)]) for k in range(count)] if things else []
