"""Quantities, matched forgetting and the statistics over levels."""

from __future__ import annotations

import numpy as np
import pytest

from mmsurgery.artifacts.mask import pack
from mmsurgery.experiments import statistics
from mmsurgery.experiments.resampling import Asked
from mmsurgery.experiments.scores import Point, Values, at_matched_forgetting, quantity, unpack, utility


def values(items: list[float] | list[list[float]], people: list[str], vanilla: object = None) -> Values:
    """A column of one level; a list of lists is several runs."""
    runs = items if isinstance(items[0], list) else [items]
    asked = Asked(object() if vanilla is None else vanilla, {"forget_vqa": people})
    return Values(asked, ("forget_vqa",), {seed: (np.array(run),) for seed, run in enumerate(runs)})


def test_utility_weighs_columns_not_items() -> None:
    correct = {"forget_vqa": np.zeros(3), "forget_qa": np.array([1.0]), "retain_qa": np.array([0.0, 0.0, 1.0, 0.0])}
    people = {"forget_vqa": ["a"] * 3, "forget_qa": ["a"], "retain_qa": ["b", "b", "c", "c"]}
    asked = Asked("v", people)
    found = quantity("utility", {0: correct}, asked)
    assert found.mean == pytest.approx((1 + 1 / 4) / 2)
    assert found.n == 5
    assert found.mean == pytest.approx(utility({"forget_vqa": 0.0, "forget_qa": 1.0, "retain_qa": 0.25}))
    assert quantity("forget_vqa", {0: correct}, asked).mean == 0


def test_curve_of_packed_bits() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(13) < 0.5
    evaluations = [{"step": 4, "correct": {"forget_vqa": pack(right).tobytes().hex(), "test_vqa": "ff"}}]
    (point,) = unpack(evaluations, {"forget_vqa": 13})
    assert point.step == 4
    assert set(point.correct) == {"forget_vqa"}
    assert np.array_equal(point.correct["forget_vqa"], right)


def test_matched_forgetting_interpolates_items() -> None:
    before = {"forget_vqa": np.array([1.0, 1, 1, 0]), "retain_qa": np.array([1.0, 1])}
    after = {"forget_vqa": np.array([0.0, 0, 1, 0]), "retain_qa": np.array([1.0, 0])}
    curve = [Point(0, before), Point(8, after)]
    found = at_matched_forgetting(curve, 0.5)
    assert found is not None
    assert found.step == 4
    assert found.correct["forget_vqa"].tolist() == [0.5, 0.5, 1, 0]
    assert found.correct["retain_qa"].tolist() == [1, 0.5]
    assert at_matched_forgetting(curve, 0.2) is None
    at_once = at_matched_forgetting(curve, 0.75)
    assert at_once is not None
    assert at_once.step == 0


def test_interval_covers_and_narrows() -> None:
    rng = np.random.default_rng(1)

    def level(people: int) -> Values:
        rate = rng.beta(8, 4, people)
        items = [float(rng.random() < rate[p]) for p in range(people) for _ in range(7)]
        return values(items, [f"p{p}" for p in range(people) for _ in range(7)])

    few, many = [level(6) for _ in range(3)], [level(60) for _ in range(3)]
    widths = []
    for levels in (few, many):
        low, high = statistics.interval(levels)
        assert low < np.mean([v.mean for v in levels]) < high
        widths.append(high - low)
    assert widths[1] < widths[0]
    # levels that differ widen the interval: one at 0, one at 1
    apart = [values([0.0] * 8, list("aabbccdd")), values([1.0] * 8, list("aabbccdd"))]
    assert statistics.interval(apart) == (0.0, 1.0)
    assert statistics.interval([values([1.0, 0.0], ["a", "a"])]) == (0.0, 1.0)


def test_interval_of_a_mean_of_columns_stays_in_range() -> None:
    """People of different columns are drawn apart: else a column without its people has no mean."""
    people = {"forget_qa": ["a", "b"], "retain_qa": [f"p{i // 4}" for i in range(200)]}
    halves = {"forget_qa": np.ones(2), "retain_qa": np.zeros(200)}
    assert statistics.interval([quantity("utility", {0: halves}, Asked("v", people))]) == (0.5, 0.5)


def test_interval_where_all_is_right_or_wrong_says_what_so_many_items_can() -> None:
    people = [f"p{i // 21}" for i in range(126)]
    low, high = statistics.interval([values([1.0] * 126, people)])
    assert (low, high) == (pytest.approx(0.025 ** (1 / 126)), 1.0)  # 97.1 %: Clopper and Pearson
    assert statistics.interval([values([0.0] * 126, people)]) == (0.0, pytest.approx(1 - low))
    twice = [values([1.0] * 126, people, vanilla) for vanilla in ("v", "w")]
    assert statistics.interval(twice)[0] == pytest.approx(0.025 ** (1 / 252))


@pytest.mark.parametrize(("people", "rows", "can"), [(6, 1, True), (6, 2, False), (8, 4, True), (7, 4, False)])
def test_what_so_many_people_can_resolve(people: int, rows: int, can: bool) -> None:
    """Of n people who all differ in one sense the exact p is 2 / 2^n; 6 among 2 rows: 0.0625."""
    assert statistics.resolvable(people, rows) is can


def test_weights_draw_people_then_items() -> None:
    people = {"forget_vqa": list("aaab"), "forget_qa": list("ab"), "retain_qa": list("ccdd")}
    drawn = Asked("v", people).drawn
    weights = {column: each / each.sum(1, keepdims=True) for column, each in drawn.items()}
    for column, each in weights.items():
        # nothing is favoured: on the average every item weighs as in the plain mean
        expected = {"forget_vqa": [0.21, 0.21, 0.21, 0.37]}.get(column, [1 / each.shape[1]] * each.shape[1])
        assert each.mean(0) == pytest.approx(expected, abs=0.02)
    # a and b are drawn in both columns at once: where a is missing it is missing in both
    without = weights["forget_qa"][:, 0] == 0
    assert 0.2 < without.mean() < 0.3
    assert (weights["forget_vqa"][without, :3] == 0).all()
    # within a person that was drawn once, items differ in how often they were drawn
    once = weights["forget_qa"][:, 0] == 0.5
    assert len({tuple(row) for row in weights["forget_vqa"][once, :3].tolist()}) > 3


def test_interval_knows_unlearning_seeds_and_draws() -> None:
    people = [f"p{i}" for i in range(40)]
    agree = values([[1.0, 0.0] * 20] * 4, people)
    differ = values([[1.0] * 40, [0.0] * 40, [1.0] * 40, [0.0] * 40], people)
    assert agree.mean == differ.mean == 0.5
    widths = [high - low for low, high in (statistics.interval([level]) for level in (agree, differ))]
    assert widths[1] > 2 * widths[0]
    # two draws of one vanilla model weigh as much together as another vanilla model's only one
    levels = [values([1.0] * 40, people, "v"), values([1.0] * 40, people, "v"), values([0.0] * 40, people, "w")]
    assert statistics.mean(levels) == 0.5
    assert statistics.interval(levels) == (0.0, 1.0)


def test_comparison_pairs_levels() -> None:
    people = [f"p{i}" for i in range(10)]
    first = [values([1.0] * 10, people, 0), values([1.0] * 9 + [0.0], people, 1)]
    second = [values([0.0] * 10, people, 0), values([1.0] * 10, people, 1)]
    found = statistics.compare(first, second)
    assert found is not None
    assert found.difference == pytest.approx((1 - 0.1) / 2)
    assert (found.same_sign, found.levels, found.people, found.n) == (1, 2, 20, 20)
    sure = statistics.compare(
        [values([1.0] * 10, people, 0), values([1.0] * 10, people, 1)],
        [values([0.0] * 10, people, 0), values([0.0] * 10, people, 1)],
    )
    assert sure is not None
    assert sure.ci95 == (1.0, 1.0)
    assert sure.p_value < 0.001
    same = statistics.compare(first, first)
    assert same is not None
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_runs_are_paired_by_seed() -> None:
    people = ["a", "b"]
    one = values([[1.0, 1.0], [1.0, 1.0]], people, 0)
    other = values([[0.0, 0.0]], people, 0)
    found = statistics.compare([one], [other])
    assert found is not None
    assert found.difference == 1
    never = Values(other.asked, other.names, {7: other.runs[0]})
    assert statistics.compare([one], [never]) is None
