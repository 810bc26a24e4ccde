"""The counts behind the paper's Table 1 and 2, printed here, are its percentages; three cells are of no count."""

from __future__ import annotations

import pytest

from mmsurgery.report import numbers
from mmsurgery_cli.output import percent

# right answers of n -> what is printed; zero-shot there are 125 forget and 765 celebrity questions, one-shot 120, 760
MLLMU = [
    (125, {54: "43.2", 50: "40.0", 53: "42.4", 39: "31.2", 69: "55.2", 63: "50.4", 68: "54.4", 57: "45.6", 62: "49.6",
           55: "44.0", 38: "30.4", 42: "33.6", 48: "38.4", 66: "52.8"}),
    (120, {55: "45.8", 39: "32.5", 41: "34.2", 66: "55.0", 56: "46.7"}),
    (760, {360: "47.4", 357: "47.0", 354: "46.6"}),
    (765, {591: "77.3", 569: "74.4", 570: "74.5", 572: "74.8", 575: "75.2", 576: "75.3", 420: "54.9", 421: "55.0",
           410: "53.6", 418: "54.6", 593: "77.5", 595: "77.8", 589: "77.0", 590: "77.1", 599: "78.3"}),
]  # fmt: skip
# CLEAR: LLaVA and Qwen2-VL; vanilla, GA, GA_Diff, KL_Min, NPO, MMUnlearner
CLEAR = [
    (188, [119, 108, 89, 76, 76, 68, 126, 104, 119, 126, 118, 94],
     "63.3 57.4 47.3 40.4 40.4 36.2 67.0 55.3 63.3 67.0 62.8 50.0"),
    (189, [102, 99, 82, 72, 73, 88, 134, 118, 135, 134, 129, 134],
     "54.0 52.4 43.4 38.1 38.6 46.6 70.9 62.4 71.4 70.9 68.3 70.9"),
    (367, [197, 190, 175, 189, 194, 192, 254, 242, 257, 251, 253, 253],
     "53.7 51.8 47.7 51.5 52.9 52.3 69.2 65.9 70.0 68.4 68.9 68.9"),
    (151, [129, 126, 111, 125, 126, 127, 138, 131, 140, 137, 134, 143],
     "85.4 83.4 73.5 82.8 83.4 84.1 91.4 86.8 92.7 90.7 88.7 94.7"),
]  # fmt: skip


@pytest.mark.parametrize(("n", "cells"), MLLMU)
def test_mllmu_bench(n: int, cells: dict[int, str]) -> None:
    assert {count: percent(count / n) for count in cells} == cells


@pytest.mark.parametrize(("n", "counts", "printed"), CLEAR)
def test_clear(n: int, counts: list[int], printed: str) -> None:
    assert [percent(count / n) for count in counts] == printed.split()
    assert [numbers.percent(count / n) for count in counts] == [f"{text} %" for text in printed.split()]


@pytest.mark.parametrize("text", ["45.3", "33.4", "33.0"])
def test_three_cells_are_of_no_count(text: str) -> None:
    """Averages, errors or another state of the data: not to be reproduced from 125 or 120 questions."""
    assert text not in {percent(count / n) for n in (125, 120) for count in range(n + 1)}
