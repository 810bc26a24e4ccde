"""What a cell of the page says of each kind of column."""

from __future__ import annotations

from mmsurgery.report.fields import Fields
from mmsurgery.report.models import _number


def test_the_probability_of_the_truth_is_a_number_with_its_ratio_told() -> None:
    cell = {"protocol": "likelihood", "n": 5, "probability": 0.25, "truth_ratio": 0.5, "ci95": [0.2, 0.3]}
    found = _number(Fields(cell, "where"))
    assert found.value == 0.25
    assert found.title == "n = 5, probability of the truth, truth ratio 50.0 %"
