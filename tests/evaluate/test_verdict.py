"""LoRAs of known quality get the right verdict: noise, negated, copied, plateau, one scale, prompt lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch

from convert.errors import JobError
from tests.drawings import drawing
from trainer.data.records import process
from trainer.evaluate import recommend
from trainer.evaluate.copying import warnings
from trainer.evaluate.evaluate import verdict
from trainer.evaluate.gallery import Gallery
from trainer.evaluate.ink import Ink
from trainer.evaluate.judge import Judge
from trainer.evaluate.measure import Measure
from trainer.evaluate.settings import Settings
from trainer.evaluate.small_judge import SmallJudge
from trainer.evaluate.subjects import Plan, Subject, make_plan
from trainer.recipe import Recipe

SCALES = [0.0, 0.5, 1.0]
NAMES = ["apple", "cup", "fish", "flower", "house", "mushroom", "star", "sun"]


# ---- by numbers ----


def verdict_of(means: list[float], *, noise: float = 0.01, prompt: list[float] | None = None, own: float = 25.0,
               copies: tuple[int, ...] = (), categories: int = 20) -> dict[str, Any]:  # fmt: skip
    """The verdict on similarities with these means, equal in all categories up to `noise`."""
    rng = np.random.default_rng(3)
    scales = [0.0, *np.linspace(0.25, 1, len(means) - 1).tolist()]
    style = np.array(means) + rng.normal(0, 0.1, (categories, 1)) + rng.normal(0, noise, (categories, len(means)))
    followed = np.array(prompt or [25.0] * len(means)) + rng.normal(0, 0.1, (categories, len(means)))
    flags = np.isin(np.arange(len(means)), copies)
    return recommend.recommend(style, followed, np.full(categories, own), flags, scales, seed=0)


def test_noise_is_not_recommended() -> None:
    found = verdict_of([0.40629, 0.40635, 0.40626, 0.40632, 0.40632], noise=0.001)
    assert (found["scale"], found["verdict"]) == (None, "noise")
    assert "no scale brings the pictures measurably nearer" in recommend.in_words(found)


def test_a_harmful_lora_is_not_recommended() -> None:
    found = verdict_of([0.406, 0.351, 0.251, 0.191])
    assert (found["scale"], found["verdict"]) == (None, "worse") and "some are worse" in recommend.in_words(found)


def test_of_a_plateau_the_smallest_scale_is_taken() -> None:
    found = verdict_of([0.4, 0.6, 0.8, 0.8, 0.8], noise=0.02)
    assert (found["scale"], found["low"], found["verdict"]) == (0.5, 0.5, "best") and found["high"] > 0.5
    assert found["gain"]["low"] < 0.4 < found["gain"]["high"] and "From 0.5 to" in recommend.in_words(found)


def test_one_scale_is_called_the_only_one_and_a_rising_curve_rising() -> None:
    only = verdict_of([0.4, 0.9])
    assert (only["scale"], only["verdict"]) == (0.25, "only") and "the only scale" in recommend.in_words(only)
    end = verdict_of([0.4, 0.5, 0.6, 0.7])
    assert (end["scale"], end["verdict"]) == (1.0, "end") and "still rises" in recommend.in_words(end)
    assert verdict_of([0.4, 0.9, 0.6])["verdict"] == "best"


def test_a_scale_that_loses_the_prompt_is_not_recommended() -> None:
    kept = verdict_of([0.4, 0.6, 0.7, 0.9], prompt=[25, 25, 25, 25.1])
    assert (kept["scale"], kept["verdict"]) == (1.0, "end")
    lost = verdict_of([0.4, 0.6, 0.7, 0.9], prompt=[25, 25, 24.98, 21])
    assert (lost["scale"], lost["verdict"], lost["low"]) == (0.625, "prompt", 1.0)
    assert "the largest scale that keeps the prompt" in recommend.in_words(lost)
    gone = verdict_of([0.4, 0.6, 0.7, 0.9], prompt=[25, 23, 22, 21])
    assert (gone["scale"], gone["verdict"]) == (None, "prompt lost") and "show their prompt less" in recommend.in_words(gone)


def test_the_prompt_is_kept_where_real_pictures_follow_it_no_better() -> None:
    """CLIP rates a scribble of an apple below the base's photo of one, and a human's scribble too."""
    means, prompt = [0.4, 0.6, 0.9, 0.8], [30, 28, 25, 21]
    assert verdict_of(means, prompt=prompt, own=25)["scale"] == 0.625
    assert verdict_of(means, prompt=prompt, own=30)["verdict"] == "prompt lost"


def test_copies_do_not_count_and_few_categories_decide_nothing() -> None:
    assert verdict_of([0.4, 0.6, 0.9], copies=(2,))["scale"] == 0.25
    copied = verdict_of([0.4, 0.9, 0.95], copies=(1, 2))
    assert (copied["scale"], copied["verdict"]) == (None, "copies") and "copies of training" in recommend.in_words(copied)
    few = verdict_of([0.4, 0.9, 0.95], categories=3)
    assert (few["scale"], few["verdict"]) == (None, "few") and "only 3 categories" in recommend.in_words(few)


@pytest.mark.parametrize("name", ["noise", "worse", "few", "copies", "prompt lost"])
def test_without_a_recommendation_nothing_is_written(name: str, lora: Path) -> None:
    before = lora.read_bytes(), lora.with_suffix(".json").read_bytes()
    found = {"scale": None, "low": None, "high": None, "best": 0.5, "categories": 3, "verdict": name,
             "gain": {"mean": 0.0, "low": -0.1, "high": 0.1}}
    with pytest.raises(JobError, match="was not changed. Nothing is recommended: "):
        recommend.write(lora, found, "")
    assert (lora.read_bytes(), lora.with_suffix(".json").read_bytes()) == before


# ---- by pictures: those that a LoRA of known quality would draw, measured by the program's own parts ----


class Truth(Protocol):
    def __call__(self, subject: Subject, scale: float, trained: np.ndarray) -> np.ndarray: ...


def fresh(subject: Subject) -> np.ndarray:
    """A doodle of the subject's category that is neither in training nor held out."""
    return process(drawing(subject.name, np.random.default_rng([99, subject.seed])), 64)


def photo(subject: Subject) -> np.ndarray:
    """A base without the style: colour on a dark background."""
    rng = np.random.default_rng([7, subject.seed])
    return np.clip(rng.normal([90, 40, 20], 12, (64, 64, 3)) + 80 * (fresh(subject) < 128), 0, 255).astype(np.uint8)


def blend(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    return np.round((1 - share) * a + share * b.astype(float)).astype(np.uint8)


def noise(subject: Subject, scale: float, trained: np.ndarray) -> np.ndarray:
    jitter = np.random.default_rng([int(100 * scale), subject.seed]).normal(0, 3, (64, 64, 3))
    return np.clip(photo(subject) + jitter, 0, 255).astype(np.uint8)


def negated(subject: Subject, scale: float, trained: np.ndarray) -> np.ndarray:
    grey = blend(photo(subject), fresh(subject), 0.5)
    return blend(grey, 255 - fresh(subject), scale)


def plateau(subject: Subject, scale: float, trained: np.ndarray) -> np.ndarray:
    jitter = np.random.default_rng([int(100 * scale), subject.seed]).normal(0, 4, (64, 64, 3))
    return np.clip((fresh(subject) if scale else photo(subject)) + jitter, 0, 255).astype(np.uint8)


def copied(subject: Subject, scale: float, trained: np.ndarray) -> np.ndarray:
    return trained if scale else photo(subject)


@pytest.fixture
def judge(clip: Path) -> Judge:
    return Judge(str(clip), "--clip", torch.device("cpu"), print)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Drawings of eight categories, six of them trained on."""
    folder = tmp_path_factory.mktemp("wide")
    for number, name in enumerate(NAMES):
        rows = [drawing(name, np.random.default_rng([number, row])).reshape(-1) for row in range(40)]
        np.save(folder / f"{name}.npy", np.stack(rows))
    return Recipe(data=str(folder), categories=",".join(NAMES[:6]), per_category=8)


def measured(truth: Truth, recipe: Recipe, judge: Judge, folder: Path, scales: list[float]) -> dict[str, Any]:
    """The verdict and its report on pictures as `truth` draws them."""
    settings = Settings(per_scale=12, prompts=6, seeds=3, scales=",".join(map(str, scales)), complex=("sun",), dino="none")
    plan: Plan = make_plan(settings, recipe, side=64, cache=folder, say=print)
    gallery = Gallery(folder / "pictures", None, 8)  # type: ignore[arg-type]  # nothing is left to draw
    gallery.folder.mkdir()
    trained = {name: examples[0].pixels(64) for group in plan.groups for name, examples in group.training.items()}
    from PIL import Image

    for subject in plan.subjects():
        for scale in settings.scale_list:
            picture = truth(subject, scale, trained.get(subject.name, fresh(Subject("cup", "", 0))))
            Image.fromarray(picture).save(gallery.path(subject, scale))
    references = [e.pixels(64) for g in plan.groups for part in g.references.values() for e in part]
    measure = Measure(settings, settings.scale_list, gallery, judge, judge, None, Ink.of(references), 64)
    report = {"scales": settings.scale_list, "settings": settings.as_dict(), "told": [],
              "groups": {g.kind: measure.group(g) for g in plan.groups}, "diversity": measure.diversity(plan)}
    report["recommended"] = verdict(report)
    report["warnings"] = warnings(report)
    return report


def test_pictures_of_noise_and_of_a_negated_lora(wide: Recipe, judge: Judge, tmp_path: Path) -> None:
    for truth, names in ((noise, {"noise", "worse"}), (negated, {"worse"})):
        folder = tmp_path / truth.__name__
        folder.mkdir()
        found = measured(truth, wide, judge, folder, SCALES)["recommended"]
        assert found["scale"] is None and found["verdict"] in names, (truth, found)


def test_pictures_of_a_plateau_and_of_one_scale(wide: Recipe, tmp_path: Path) -> None:
    report = measured(plateau, wide, SmallJudge("--clip", print), tmp_path, SCALES)
    found = report["recommended"]
    assert (found["scale"], found["verdict"]) == (0.5, "best"), found
    seen = report["groups"]["seen"]
    for key in ("ink_distance", "cmmd"):
        assert seen[key]["mean"][1] < seen[key]["mean"][0]
    assert not any(seen["nearest_training"]["copies"]) and not report["warnings"]
    (tmp_path / "one").mkdir()
    assert measured(plateau, wide, SmallJudge("--clip", print), tmp_path / "one", [1.0])["recommended"]["verdict"] == "only"


def test_copies_are_detected(wide: Recipe, judge: Judge, tmp_path: Path) -> None:
    report = measured(copied, wide, judge, tmp_path, SCALES)
    assert report["groups"]["seen"]["nearest_training"]["copies"] == [False, True, True]
    assert report["recommended"]["verdict"] == "copies" and report["recommended"]["scale"] is None
    assert any("are copies of training pictures" in line for line in report["warnings"])
    assert any("much the same for every seed" in line for line in report["warnings"])
    assert report["diversity"]["mean"][1] < 1e-4
