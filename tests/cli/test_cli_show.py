"""What results look like to people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsurgery.unlearn.apply import ApplyResult
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import chain as show


def printed(capsys: pytest.CaptureFixture[str], evaluations: list[dict[str, Any]]) -> str:
    record = {"steps": {"done": 8, "planned": 8}, "evaluations": evaluations}
    Output().show(*show.applied(ApplyResult("npo", Path("npo"), False, "none", {}, record)))
    return capsys.readouterr().out


def test_a_run_that_was_scored_shows_its_curve(capsys: pytest.CaptureFixture[str]) -> None:
    points = [
        {"step": step, "columns": {"retain_qa": 0.9, "forget_vqa": forget}} for step, forget in ((0, 1.0), (8, 0.25))
    ]
    lines = printed(capsys, points).splitlines()
    assert ["0", "100.0", "90.0"] in [line.split() for line in lines]
    assert ["8", "25.0", "90.0"] in [line.split() for line in lines]
    assert "step" not in [line.split()[0] for line in printed(capsys, []).splitlines() if line.split()]
