"""How long a grid has to go."""

from __future__ import annotations

from typing import Any

import pytest

from mmsurgery.experiments.pace import Estimated, Pace
from mmsurgery_cli import running
from mmsurgery_cli.running import _GridOutput

ROWS = ["ga", "npo"]


def done(level: str, row: str, seconds: float, event: str = "done") -> dict[str, Any]:
    return {"event": event, "level": level, "row": row, "seconds": seconds}


def test_what_is_found_says_nothing() -> None:
    pace = Pace([{"a": ROWS, "b": ROWS}], 1)
    assert pace.left() is None
    assert pace.tell({"event": "prepared", "level": "a", "seconds": 9.0, "found": True})
    assert pace.tell(done("a", "ga", 30.0, "found"))
    assert pace.left() is None
    assert pace.tell(done("a", "npo", 40.0))
    # level b: to prepare weighs as four rows, GA as one, NPO as it was
    assert pace.left() == pytest.approx(4 * 40 + 40 + 40)
    assert not pace.tell({"event": "evaluation", "level": "b", "row": "ga", "step": 3})
    pace.tell({"event": "prepared", "level": "b", "seconds": 80.0, "found": False})
    assert pace.left() == pytest.approx(30 + 40)  # of 80 / 4 and 40 a row takes 30
    pace.tell({"event": "failed", "level": "b", "row": "ga", "reason": "nan"})
    assert pace.left() == 40


def test_pieces_side_by_side_take_as_long_as_the_longest() -> None:
    pace = Pace([{"a": ROWS}, {"b": ["ga"]}], 2, before=[done("x", "ga", 10.0), done("x", "npo", 30.0)])
    # to prepare: 4 x 20
    assert pace.left() == pytest.approx(80 + 10 + 30)
    alone = Pace([{"a": ROWS}, {"b": ["ga"]}], 1, before=[done("x", "ga", 10.0), done("x", "npo", 30.0)])
    assert alone.left() == pytest.approx(120 + 90)


def test_runs_of_a_row_are_steps_each() -> None:
    pace = Pace([{"a": ["ga", "ga"]}], 1)
    pace.tell({"event": "prepared", "level": "a", "seconds": 8.0, "found": True})
    pace.tell(done("a", "ga", 10.0))
    assert pace.left() == 10
    pace.tell(done("a", "ga", 20.0))
    assert pace.left() == 0


def test_the_outermost_bar_shows_what_the_grid_says(monkeypatch: pytest.MonkeyPatch) -> None:
    output = _GridOutput()
    now = [100.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    assert isinstance(output, Estimated)
    with output.stage("table1, rows", 5), output.stage("inner", 3), output._bars() as bars:
        outer, inner = bars.tasks
        column = bars.columns[-1]
        assert isinstance(column, running._Left)
        assert column.render(outer).plain == "-:--:--"
        output.left(75.0)
        now[0] = 110.0
        assert column.render(outer).plain == "0:01:05"
        now[0] = 999.0
        assert column.render(outer).plain == "0:00:00"
        output.left(None)
        assert column.render(outer).plain == "-:--:--"
        assert column.render(inner).plain != "0:01:05"
