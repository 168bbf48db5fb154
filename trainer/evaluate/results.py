"""The parts of an evaluation as types: report.json is a `Report`, or for a whole run a `JointReport`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from PIL import Image

from convert.files.json_file import Json

Numbers = list[float | None]
"""One number for each scale; None for NaN, which JSON does not have."""

Measured = Literal["similarity", "prompt_score", "clip_score", "ink_distance", "dino_similarity"]
"""Measures of a single picture."""
Key = Literal[Measured, "cmmd", "held_out_loss", "nearest_training"]
"""All measures that have a curve."""
Part = Literal["mean", "low", "high"]
PARTS: tuple[Part, ...] = ("mean", "low", "high")


class Interval(TypedDict):
    """Means and the ends of their 95 % intervals."""

    mean: Numbers
    low: Numbers
    high: Numbers


class Distance(Interval):
    """A measure of pictures taken together, against the scale."""

    n: int
    """pictures"""
    categories: int
    drawings: NotRequired[float | None]
    """the same of held-out pictures"""


class Curve(Distance):
    """A measure against the scale."""

    against_base: Interval


class Nearest(Curve):
    """Cosines with the nearest training picture."""

    copies: list[bool]


class SubjectRecord(TypedDict):
    """One prompt with one seed, and its pictures' measures at each scale."""

    name: str
    prompt: str
    plain: str
    """the prompt without its trigger words"""
    seed: int
    pictures: list[str]
    similarity: Numbers
    prompt_score: Numbers
    clip_score: Numbers
    ink_distance: Numbers
    dino_similarity: NotRequired[Numbers]


class LossRecord(TypedDict):
    name: str
    held_out_loss: Numbers


class Losses(TypedDict):
    held_out_loss: Curve
    losses: list[LossRecord]


class GroupMeasures(TypedDict):
    """The results of one group of categories or captions; no curve for a missing judge or missing training pictures."""

    similarity: Curve
    prompt_score: Curve
    clip_score: Curve
    ink_distance: Curve
    dino_similarity: NotRequired[Curve]
    cmmd: Distance
    nearest_training: NotRequired[Nearest]
    references: dict[str, list[str]]
    own_prompt_score: dict[str, float]
    """of each category's held-out pictures"""
    subjects: list[SubjectRecord]


class GroupReport(GroupMeasures, Losses):
    """The same with the denoising losses."""


class Complex(TypedDict):
    """Complex prompts with or without trigger words (figures 8 and 9)."""

    similarity: Curve
    ink_distance: Curve
    prompt_score: Curve
    half_way: float | None


class Gain(TypedDict):
    """The gain in similarity over the base, with its interval."""

    mean: float
    low: float
    high: float


class Verdict(TypedDict):
    """See `recommend`."""

    scale: float | None
    low: float | None
    high: float | None
    best: float
    gain: Gain | None
    categories: int
    verdict: str
    step: NotRequired[int]
    """the checkpoint's, in a joint report"""


class Row(TypedDict):
    prompt: str
    seed: int


class GridRecord(TypedDict):
    file: str
    rows: list[Row]


class Grid(GridRecord):
    """The same with the fields that the page shows."""

    title: str
    image: Image.Image


class Lora(TypedDict):
    name: str
    file: str
    digest: str
    form: str
    rank: int | None
    alpha: float | None
    modules: int
    recipe: dict[str, Json] | None


class Provenance(TypedDict):
    """The inputs of an evaluation: LoRA, base, data, judges, settings."""

    lora: Lora
    base: dict[str, str]
    """name, identity, family"""
    judges: dict[str, dict[str, str]]
    settings: dict[str, Json]
    data: dict[str, Json]
    versions: dict[str, str]
    device: str


class Report(Provenance):
    """The report of one LoRA at every scale."""

    told: list[str]
    scales: list[float]
    groups: dict[str, GroupReport]
    complex: dict[str, Complex]
    diversity: Curve | None
    recommended: NotRequired[Verdict]
    """always present in a file, as are the next two"""
    warnings: NotRequired[list[str]]
    grids: NotRequired[dict[str, GridRecord]]


class Name(TypedDict):
    name: str


class JointReport(TypedDict):
    """The report of every checkpoint of a run at every scale, by step; steps are strings, as JSON requires."""

    run: str
    steps: list[int]
    scales: list[float]
    lora: Name
    similarity: dict[str, list[float]]
    each: dict[str, Verdict]
    recommended: Verdict
    warnings: list[str]
