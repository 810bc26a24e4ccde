"""The benchmark of plans: what it makes of pairs, and that both sides of one begin in the same state."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import plan_time
import pytest


def case(seconds: float | None) -> Any:
    return plan_time.Case(
        name="a run",
        plan=lambda: SimpleNamespace(seconds=seconds, notes=("no time: too large",)),
        run=lambda: time.sleep(0.02),
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_plan_and_a_run_are_each_timed_in_a_process_of_their_own() -> None:
    assert plan_time.forked(os.getpid) != os.getpid()
    found = plan_time.pair(case(7.0))
    assert found["planned"] == 7.0
    assert found["seen"] >= 0.02
    with pytest.raises(SystemExit, match="a run: no time: too large"):
        plan_time.pair(case(None))


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    pairs = [{"planned": planned, "planning": 1.0, "seen": 2.0} for planned in (1.0, 3.2, 2.4)]
    found = plan_time.figure("llava-30M", "diff", pairs)
    assert (found["ratio"], found["least"], found["greatest"]) == (1.2, 0.5, 1.6)
    assert plan_time.held(found)
    assert "| **1.20** | 0.50, 1.60 |" in plan_time.line(found)
    for planned, is_held in ((1.3, False), (1.4, True), (2.9, True), (3.1, False)):
        one = plan_time.figure("m", "c", [{"planned": planned, "planning": 1.0, "seen": 2.0}])
        assert plan_time.held(one) is is_held
        assert plan_time.line(one).endswith("off |") is not is_held
