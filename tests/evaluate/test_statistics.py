"""Intervals have their nominal coverage, Student's t agrees with tables, rules agree with their sources."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.evaluate.copying import copying, nearest
from trainer.evaluate.curves import curve
from trainer.evaluate.statistics import by_category, equals, interval, jackknife, mmd, standard_error, student_t

sys.path.insert(0, str(Path(__file__).parent))
import simulated_coverage as coverage


@pytest.mark.parametrize(("p", "freedom", "quantile"), [  # of printed tables
    (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 9, 2.262), (0.975, 18, 2.101),
    (0.995, 4, 4.604), (0.9995, 5, 6.869), (0.95, 12, 1.782)])  # fmt: skip
def test_quantiles_of_students_t_are_the_tables(p: float, freedom: int, quantile: float) -> None:
    assert abs(student_t(p, freedom) - quantile) < 6e-4


def test_few_categories_have_no_interval_some_have_students_and_many_agree_with_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, (100, 3))
    assert np.isnan(interval(values[:3], 0)).all() and np.isfinite(interval(values[:4], 0)).all()
    low, high = interval(values[:10], seed=0)
    half = 2.262 * values[:10].std(axis=0, ddof=1) / math.sqrt(10)
    np.testing.assert_allclose([low, high], [values[:10].mean(axis=0) - half, values[:10].mean(axis=0) + half], rtol=1e-3)
    low, high = interval(values, seed=1)
    np.testing.assert_allclose((high - low) / 2, 1.984 * standard_error(values), rtol=0.06)
    wide, _ = interval(values, seed=1, together=True)
    assert (wide < low).all()  # at once is asked for more
    np.testing.assert_array_equal(interval(values, seed=1), interval(values, seed=1))
    assert (np.array(interval(values, seed=1)) != np.array(interval(values, seed=2))).any()


@pytest.mark.parametrize("categories", [5, 10, 20])
def test_intervals_have_their_nominal_coverage(categories: int) -> None:
    """250 repeats; `python tests/evaluate/simulated_coverage.py` does 1,000 and more cases."""
    assert 0.92 < coverage.coverage(250, categories) < 0.98
    assert coverage.coverage(250, categories, together=True) > 0.92


@pytest.mark.parametrize("categories", [5, 20])
def test_of_400_loras_of_noise_at_most_one_in_twenty_is_recommended(categories: int) -> None:
    assert coverage.recommended(400, categories) <= 0.05
    assert coverage.recommended(20, categories, effect=5, along=0.8) == 1


def test_pictures_of_one_category_count_as_one() -> None:
    values = np.array([[1.0], [3.0], [10.0]])
    means, names = by_category(values, ["a", "a", "b"])
    np.testing.assert_array_equal(means, [[2.0], [10.0]])
    assert names == ["a", "b"]
    many = np.repeat(np.random.default_rng(0).normal(size=(5, 1)), 20, axis=0)  # twenty equal pictures of each of five
    found = curve(many, [f"c{k // 20}" for k in range(100)], seed=0)
    assert (found["n"], found["categories"]) == (100, 5)
    assert found["high"][0] - found["low"][0] > 2 * 2.7 * many[::20].std(ddof=1) / math.sqrt(5)


def test_differences_from_the_base_leave_out_each_categorys_own_level() -> None:
    level = np.random.default_rng(0).normal(0, 10, (30, 1))
    found = curve(level + np.array([[0.0, 1.0]]), [str(k) for k in range(30)], seed=0)
    base = found["against_base"]
    assert base["mean"] == [0, 1] and abs(base["low"][1] - 1) < 1e-5 and found["high"][1] - found["low"][1] > 3
    alone = curve(level, [str(k) for k in range(30)], seed=0)  # a single scale has an interval of its mean too
    assert alone["high"][0] - alone["low"][0] > 3
    assert curve(level[:3], ["a", "b", "c"], seed=0)["low"] == [None]


def test_the_one_standard_error_rule() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, (40, 1))  # shared by the scales, so differences are exact
    apart = np.random.default_rng(1).normal(0, 0.01, (40, 5))
    values = noise + apart + [0.1, 0.5, 0.8, 0.8001, 0.7]
    everything = np.ones(5, dtype=bool)
    assert equals(values, everything).tolist() == [False, False, True, True, False]
    assert equals(values, np.array([True, True, False, False, True])).tolist() == [False, False, False, False, True]


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2))
    estimate, low, high = jackknife(lambda used: values[used].mean(axis=0), 9)
    np.testing.assert_allclose([estimate, low, high], [values.mean(axis=0), *interval(values, 0)])
    assert np.isnan(jackknife(lambda used: values[:3][used].mean(axis=0), 3)[1]).all()


def test_mmd_is_its_definition_and_zero_in_the_mean_for_equal_distributions() -> None:
    rng = np.random.default_rng(0)

    def unit(count: int, shift: float = 0.0) -> np.ndarray:
        found = rng.normal(size=(count, 8)) + shift
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    a, b = unit(5), unit(4, 1)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return math.exp(-((x - y) ** 2).sum() / 200)

    expected = (np.mean([k(*pair) for pair in itertools.permutations(a, 2)])
                + np.mean([k(*pair) for pair in itertools.permutations(b, 2)])
                - 2 * np.mean([k(x, y) for x in a for y in b]))  # fmt: skip
    assert abs(mmd(a, b) - 1000 * expected) < 1e-8
    same = [mmd(unit(6), unit(6)) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20 < mmd(unit(50), unit(50, 1))


def test_the_expected_nearest_of_a_random_subset_is_the_mean_over_all_subsets() -> None:
    features = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    others = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    cosines = (features @ others.T).numpy()
    for count in (1, 4, 6):
        draws = [cosines[:, list(some)].max(axis=1) for some in itertools.combinations(range(6), count)]
        np.testing.assert_allclose(nearest(features, others, count), np.mean(draws, axis=0), rtol=1e-5)


def test_a_picture_near_to_every_drawing_is_not_a_copy() -> None:
    """A picture in a category's middle is nearer to training drawings than held-out ones are, and as near to those."""
    def unit(features: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(features), dim=-1)

    rng, names = np.random.default_rng(3), [f"c{k}" for k in range(8)]
    middle = {name: rng.normal(size=16) for name in names}
    train, held_out = ({name: unit(middle[name] + rng.normal(size=(10, 16))) for name in names} for _ in range(2))
    middles = torch.stack([unit(middle[name]) for name in names])
    trained = torch.stack([train[name][0] for name in names])
    found = copying(torch.stack([middles, trained], dim=1), names, train, held_out, seed=0)
    assert found["mean"][0] > found["drawings"] and found["copies"] == [False, True]
