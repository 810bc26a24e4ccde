"""Numbers derived by hand or by enumeration of all bootstrap samples and sign flips."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.evaluate.statistics import (
    Matched,
    clustered_interval,
    constant_answer,
    forgetting_target,
    holm,
    matched,
    paired_difference,
)


def test_interval_resamples_people_and_not_items() -> None:
    """Two people of 50 items each, one all right, one all wrong: a bootstrap mean is 0, 1/2 or 1 with
    probability 1/4, 1/2, 1/4, so the 95 % interval is all of (0, 1). Over 100 independent items it
    would be about 0.5 +- 0.1."""
    values, people = [1.0] * 50 + [0.0] * 50, ["a"] * 50 + ["b"] * 50
    assert clustered_interval(values, people) == (0.0, 1.0)
    alone = clustered_interval(values, [str(place) for place in range(100)])
    assert alone == pytest.approx((0.4, 0.6), abs=0.02)


def test_interval_weighs_people_by_their_items() -> None:
    """Three people with means 1, 0 and 1 over 1, 2 and 3 items. All 27 draws of three people, enumerated."""
    people = ["a", "b", "b", "c", "c", "c"]
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    sums, counts = {"a": 1, "b": 0, "c": 3}, {"a": 1, "b": 2, "c": 3}
    means = sorted(
        sum(sums[p] for p in draw) / sum(counts[p] for p in draw) for draw in itertools.product("abc", repeat=3)
    )
    # 1 of 27 draws (3.7 %) is b, b, b with mean 0: more than 2.5 %; 8 of 27 are without b
    assert (means[0], means[1], means[-8]) == (0.0, 1 / 5, 1.0)
    assert clustered_interval(values, people) == (0.0, 1.0)
    low, high = clustered_interval([*values, 1.0], [*people, "d"])
    assert 0 < low < 4 / 5 < high == 1.0


def test_interval_is_seeded_and_does_not_depend_on_item_order() -> None:
    rng = np.random.default_rng(1)
    values, people = rng.integers(0, 2, 90).astype(float), [f"p{place % 9}" for place in range(90)]
    order = rng.permutation(90)
    assert clustered_interval(values, people) == clustered_interval(values, people)
    assert clustered_interval(values, people) == clustered_interval(values[order], [people[i] for i in order])
    assert clustered_interval(values, people) != clustered_interval(values, people, seed=1)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """20 people whose accuracies are drawn around 0.7: the interval holds 0.7 in about 95 % of 80 worlds
    (a little less with few clusters); an interval over items would hold it far more rarely."""
    rng, held, naive = np.random.default_rng(0), 0, 0
    for _ in range(80):
        rates = rng.choice((0.4, 1.0), 20)
        values = (rng.random((20, 10)) < rates[:, None]).astype(float).ravel()
        low, high = clustered_interval(values, [f"p{place // 10}" for place in range(200)])
        held += low <= 0.7 <= high
        low, high = clustered_interval(values, [str(place) for place in range(200)])
        naive += low <= 0.7 <= high
    assert 0.88 <= held / 80 <= 0.99
    assert naive / 80 < 0.8


def test_degenerate_intervals() -> None:
    assert clustered_interval([1.0, 0.0], ["a", "a"]) == (0.0, 1.0)
    assert clustered_interval([1.0, 1.0], ["a", "b"]) == (1.0, 1.0)
    with pytest.raises(UnusableData):
        clustered_interval([], [])


def test_paired_p_is_that_of_all_sign_flips() -> None:
    """Differences of 2, 1 and 0 summed per person: |+-2 +-1 +-0| is 3 in four of eight flips."""
    first = [1, 1, 1, 0]
    second = [0, 0, 0, 0]
    people = ["a", "a", "b", "c"]
    found = paired_difference(first, second, people)
    assert found.difference == 3 / 4
    assert found.p_value == 4 / 8
    assert found.people == 3
    assert not found.resolved


def test_few_people_resolve_nothing() -> None:
    """With five people even five equal differences have p = 2 / 32; with six, 2 / 64."""
    for people, resolved in ((5, False), (6, True)):
        names = [f"p{place}" for place in range(people)]
        found = paired_difference([1] * people, [0] * people, names)
        assert found.p_value == 2 / 2**people
        assert found.ci95 == (1.0, 1.0)
        assert found.resolved is resolved


def test_sign_flips_of_many_people_are_sampled() -> None:
    """16 people, 12 for the first model, 4 for the second: P(|binomial - 8| >= 4) = 2 sum_{k<=4} C(16, k) / 2^16."""
    first, second = [1] * 12 + [0] * 4, [0] * 12 + [1] * 4
    exact = 2 * sum(math.comb(16, k) for k in range(5)) / 2**16
    found = paired_difference(first, second, [f"p{place}" for place in range(16)])
    assert found.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))
    assert found.difference == 0.5


def test_no_difference_and_one_person() -> None:
    same = paired_difference([1, 0, 1], [1, 0, 1], ["a", "b", "c"])
    assert (same.difference, same.p_value, same.resolved) == (0.0, 1.0, False)
    alone = paired_difference([1, 1], [0, 0], ["a", "a"])
    assert (alone.difference, alone.ci95, alone.p_value, alone.resolved) == (1.0, (-1.0, 1.0), 1.0, False)


def test_differences_are_paired_and_not_two_intervals() -> None:
    """People differ wildly, the models by one item each: resolved, although both intervals overlap."""
    people = [f"p{place // 10}" for place in range(200)]
    first = [1.0 if place % 10 < (place // 10) % 10 + 1 else 0.0 for place in range(200)]
    second = [1.0 if place % 10 < (place // 10) % 10 else 0.0 for place in range(200)]
    found = paired_difference(first, second, people)
    assert found.difference == pytest.approx(0.1)
    assert found.resolved
    assert clustered_interval(first, people)[0] < clustered_interval(second, people)[1]


def test_constant_answers() -> None:
    assert constant_answer(["B", "B"], ["A", "B"]) == "B"
    assert constant_answer(["B", "A"], ["A", "B"]) is None
    assert constant_answer(["B", "B"], ["B", "B"]) is None


CURVE = [
    (0, {"forget_vqa": 0.9, "retain_vqa": 1.0}),
    (8, {"forget_vqa": 0.5, "retain_vqa": 0.8}),
    (16, {"forget_vqa": 0.1, "retain_vqa": 0.6}),
    (24, {"forget_vqa": 0.7, "retain_vqa": 0.0}),
    (32, {"forget_vqa": 0.0, "retain_vqa": 0.0}),
]


def test_matched_forgetting_interpolates_at_the_first_crossing() -> None:
    """Between steps 8 and 16 forgetting falls from 0.5 to 0.1: 0.3 lies half way."""
    assert matched(CURVE, 0.3) == Matched(12.0, {"forget_vqa": pytest.approx(0.3), "retain_vqa": pytest.approx(0.7)})
    # 0.8 is a quarter of the way from 0.9 down to 0.5
    found = matched(CURVE, 0.8)
    assert found is not None
    assert found.step == pytest.approx(2.0)
    assert found.columns["retain_vqa"] == pytest.approx(0.95)


def test_matched_forgetting_at_a_point_before_the_start_and_never() -> None:
    assert matched(CURVE, 0.5) == Matched(8.0, {"forget_vqa": 0.5, "retain_vqa": 0.8})
    assert matched(CURVE, 0.95) == Matched(0.0, CURVE[0][1])
    assert matched(CURVE[:2], 0.5) == Matched(8.0, CURVE[1][1])
    assert matched(CURVE[:2], 0.3) is None
    assert matched([], 0.3) is None
    other = matched(CURVE, 0.7, column="retain_vqa")
    assert other is not None
    assert other.step == pytest.approx(12.0)


def test_curves_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="no column 'x' at step 0"):
        matched(CURVE, 0.3, column="x")
    with pytest.raises(UsageError, match="do not increase at step 8"):
        matched([CURVE[1], CURVE[1]], 0.3)


def test_target_is_five_points_above_gold_or_chance() -> None:
    assert forgetting_target(gold=0.24, chance=0.25) == pytest.approx(0.29)
    assert forgetting_target(gold=None, chance=0.25) == pytest.approx(0.30)


def test_holm() -> None:
    # Holm: the smallest p times 4, the next times 3, ...; never below one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
