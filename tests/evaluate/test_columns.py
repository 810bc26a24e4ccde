"""Numbers of a column, remarks, comparison of two models, ROUGE-L."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from mmsurgery.errors import Mismatch, UnusableData
from mmsurgery.evaluate.columns import compare, remarks, summary
from mmsurgery.evaluate.rouge import rouge_l
from mmsurgery.evaluate.scoring import ItemScore


def scored(predicted: str, *, gold: str = "A", options: int = 4) -> list[ItemScore]:
    """One item per letter of `predicted`, two items per person."""
    return [
        ItemScore(
            f"i{place}",
            f"p{place // 2}",
            "c",
            "digest",
            {each: -1.0 if each == letter else -2.0 for each in "ABCDEF"[:options]},
            gold[place % len(gold)],
        )
        for place, letter in enumerate(predicted)
    ]


def test_summary_counts() -> None:
    found = summary([*scored("AABC"), *scored("AB", options=2)])
    assert {key: found[key] for key in ("protocol", "n", "correct", "accuracy")} == {
        "protocol": "likelihood",
        "n": 6,
        "correct": 3,
        "accuracy": 0.5,
    }
    assert found["chance"] == pytest.approx((4 * 1 / 4 + 2 * 1 / 2) / 6)
    assert list(found) == ["protocol", "n", "correct", "accuracy", "chance", "ci95"]
    low, high = found["ci95"]
    assert 0 <= low < 0.5 < high <= 1


def test_an_empty_column_has_no_numbers() -> None:
    with pytest.raises(UnusableData, match="no scored items"):
        summary([])


def said(items: Sequence[ItemScore]) -> list[str]:
    """What is said beside that there are few people."""
    return [remark for remark in remarks(items) if "people only" not in remark]


def test_few_people_are_said() -> None:
    assert remarks(scored("ABAB", gold="AABB")) == ["2 people only: the interval is narrower than what is known"]
    assert (
        remarks([dataclasses.replace(item, person=f"p{n}") for n, item in enumerate(scored("ABABA", gold="AB"))]) == []
    )


def test_remarks() -> None:
    assert said(scored("ABAB", gold="AABB")) == []
    assert said(scored("BBBB", gold="AABB")) == ["answers B to all 4 items: the model has collapsed"]
    ties = [dataclasses.replace(item, options={"A": -1.0, "B": -1.0}) for item in scored("AABB", gold="AB")[:2]]
    assert said([*ties, *scored("AABB", gold="AB")[2:]]) == ["2 ties between options; the first was taken"]
    assert remarks(scored("AB")) == ["all items are about one person: no interval can be given"]


def test_comparison_is_first_minus_second_by_item() -> None:
    """Right on 3 and on 1 of 4 items; per person +1 and +1, so |+-1 +-1| = 2 in two of four flips."""
    found = compare(scored("AAAB"), scored("ABBB")[::-1])
    assert (found.difference, found.p_value, found.people) == (0.5, 0.5, 2)
    assert compare(scored("ABBB"), scored("AAAB")).difference == -0.5


def test_only_the_same_items_are_compared() -> None:
    with pytest.raises(Mismatch, match=r"different items \(4 and 2\)"):
        compare(scored("AAAA"), scored("AA"))
    other = [dataclasses.replace(item, prompt_sha256="x") for item in scored("AAAA")]
    with pytest.raises(Mismatch, match="4 items had other prompts, such as i0"):
        compare(scored("AAAA"), other)


def test_rouge_l() -> None:
    """`the cat sat` and `the cat is sitting`: `the cat` in common; precision 2/4, recall 2/3, F1 4/7."""
    assert rouge_l("the cat sat", "The cat is sitting") == pytest.approx((4 / 7, 2 / 3))
    assert rouge_l("cats", "the cat").recall == 1.0
    assert rouge_l("lisbon", "oslo") == (0.0, 0.0)
