"""The test that knows that the worst way of asking was chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsurgery.audit.choice import p_value
from mmsurgery.evaluate.statistics import paired_difference

PEOPLE = [f"p{place}" for place in range(10)]


def way(mine: Any, theirs: Any) -> dict[str, Any]:
    return {"people": PEOPLE, "values": list(mine), "reference": list(theirs)}


def ways(worst: str = "above", **arms: Any) -> dict[str, Any]:
    return {"arms": arms, "chance": dict.fromkeys(arms, 0.25), "worst": worst}


@pytest.mark.parametrize("worst", ["above", "from", "below"])
def test_of_one_way_it_is_the_test_by_sign_flips(worst: str) -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.3, -0.4):
        mine, theirs = rng.random(10) + shift, rng.random(10)
        paired = paired_difference(mine, theirs, PEOPLE)
        found = p_value([("v", ways(worst, one=way(mine, theirs)))])
        assert found == pytest.approx(paired.p_value)


def test_models_that_know_the_same_are_told_apart_in_one_of_twenty() -> None:
    """Eight ways in three runs: by sign flips of the chosen way alone far more often."""
    rng, chosen, plain = np.random.default_rng(0), 0, 0
    for _ in range(150):
        runs, first, second, people = [], [], [], []
        for vanilla in range(3):
            arms = {f"w{n}": way(*(rng.random((2, 10)) < 0.4)) for n in range(8)}
            worst = max(arms.values(), key=lambda arm: sum(arm["values"]))
            first += worst["values"]
            second += worst["reference"]
            people += [f"{vanilla}/{person}" for person in PEOPLE]
            runs.append((vanilla, ways(**arms)))
        paired = paired_difference(np.array(first, float), np.array(second, float), people)
        plain += paired.p_value < 0.05
        chosen += p_value(runs) < 0.05
    assert chosen <= 15
    assert plain >= 3 * max(chosen, 10)


def test_what_is_there_in_every_way_is_found() -> None:
    arms = {name: way([1.0] * 10, [0.0] * 9 + [1.0]) for name in ("one", "two")}
    assert p_value([("v", ways(**arms))]) < 0.05
    less = {name: way(arm["reference"], arm["values"]) for name, arm in arms.items()}
    assert p_value([("v", ways("below", **less))]) < 0.05


def test_ties_between_ways_do_not_depend_on_rounding() -> None:
    """Seven ways of the same accuracy: nobody exchanged is one of the exchanges, so p is at least 2 / 2^6."""
    rng, people = np.random.default_rng(5), [f"p{n}" for n in range(6)]
    for _ in range(200):
        right = rng.permutation([1.0] * 20 + [0.0] * 22)
        arms = {
            f"w{n}": {
                "people": people * 7,
                "values": rng.permutation(right).tolist(),
                "reference": rng.permutation(right).tolist(),
            }
            for n in range(7)
        }
        assert p_value([("v", ways(**arms))]) >= 2 / 64
