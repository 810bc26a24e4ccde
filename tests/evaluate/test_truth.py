"""CLEAR's metrics against their formulas, computed here by hand."""

from __future__ import annotations

import math

import pytest

from mmsurgery.errors import Mismatch
from mmsurgery.evaluate import columns, truth
from mmsurgery.evaluate.scoring import ItemScore


def scored(column: str, *rows: dict[str, float]) -> list[ItemScore]:
    """Items whose options have the given probabilities."""
    return [
        ItemScore(f"{n}", f"p{n}", f"{column}.truth", "x", {k: math.log(v) for k, v in row.items()}, "true")
        for n, row in enumerate(rows)
    ]


def test_captions_and_names() -> None:
    rows = [
        {"true": 0.5, "paraphrase": 0.4, "wrong1": 0.1, "wrong2": 0.4},  # R = 0.4 / 0.2 = 2
        {"true": 0.2, "paraphrase": 0.1, "wrong1": 0.2, "wrong2": 0.2},  # R = 0.5
    ]
    found = columns.summary(scored("forget_caption", *rows))
    assert found["probability"] == pytest.approx(0.35)
    assert found["truth_ratio"] == pytest.approx((0.5 + 0.5) / 2)
    assert set(found) == {"protocol", "n", "probability", "truth_ratio", "ci95"}
    kept = columns.summary(scored("retain_caption", *rows))
    assert kept["truth_ratio"] == pytest.approx((1 - 1 / 2 + 0) / 2)
    names = columns.summary(scored("retain_vqa", {"true": 0.6, "wrong1": 0.1, "wrong2": 0.1}))
    assert names["probability"] == pytest.approx(0.6 / 0.8)
    assert names["truth_ratio"] == pytest.approx(1 - 1 / 6)  # no paraphrase: the true answer itself
    assert columns.remarks(scored("forget_vqa", *rows * 3)) == []


def test_metrics_are_harmonic_means_and_need_their_columns() -> None:
    items = {
        f"{column}.truth": scored(column, {"true": 0.5, "wrong1": 0.25})
        for pair in truth.METRICS.values()
        for column in pair
    }
    summaries = {name: columns.summary(each) for name, each in items.items()}
    found = truth.metrics(summaries, items, None)
    names = 0.5 / 0.75
    assert found["real"] == pytest.approx(4 / (1 / names + 2 + 1 / names + 2))
    assert found["forget"] == pytest.approx(4 / (1 / 0.5 + 2 + 1 / names + 2))
    assert found["forget_quality"] is None
    del summaries["realface_vqa.truth"]
    assert truth.metrics(summaries, items, None)["real"] is None


def test_forget_quality_is_one_against_oneself_and_less_against_others() -> None:
    def asked(*ratios: float) -> dict[str, list[ItemScore]]:
        return {
            "forget_caption.truth": scored("forget_caption", *({"true": 0.5, "wrong1": 0.5 / r} for r in ratios)),
        }

    gold = asked(1, 1, 2)
    assert truth.metrics({}, gold, gold)["forget_quality"] == pytest.approx(1)
    other = truth.metrics({}, asked(2, 1, 1), gold)["forget_quality"]
    # p = (.5, .25, .25), q = (.25, .25, .5), m = (.375, .25, .375)
    divergence = 0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.375)
    assert other == pytest.approx(1 - math.sqrt(divergence))
    with pytest.raises(Mismatch, match="other items"):
        truth.metrics({}, asked(2, 1), gold)
