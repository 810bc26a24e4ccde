"""`mmsurgery report`: what it prints, and its exit code."""

from __future__ import annotations

import json

import pytest

from mmsurgery.workspace import Workspace
from mmsurgery_cli.main import run


def test_report_says_where_the_page_is(full: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-w", str(full.root), "report", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["up_to_date"] is False
    assert document["holds"] == {
        "experiments": 1,
        "scores": 3,
        "generated": 0,
        "audits": 0,
        "models": 1,
        "masks": 1,
        "saliency": 1,
        "diffs": 1,
    }
    assert run(["-w", str(full.root), "report"]) == 0
    printed = capfd.readouterr().out
    assert printed.startswith("up to date")
    assert str(full.path("report", "index.html")) in printed
    assert [entry["event"] for entry in full.journal_entries()] == ["report"]


def test_damage_is_exit_3_and_the_page_is_there(full: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    for path in (full.mask_path("default"), full.eval_path("npo")):
        path.write_bytes(path.read_bytes()[:-9])
    assert run(["-w", str(full.root), "report"]) == 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error[3]: ")]
    assert "evals/npo.json" in line
    assert "and 1 more" in line
    page = full.path("report", "index.html").read_text(encoding="utf-8")
    assert "2 artifacts are not on this page" in page
    assert "Experiment table1</p>" in page


def test_pictures_are_shown_or_not_as_asked(pictured: Workspace) -> None:
    page = pictured.path("report", "index.html")
    for option, shown in ((), True), (("--no-include-samples",), False), (("--include-samples",), True):
        assert run(["-w", str(pictured.root), "report", *option]) == 0
        assert ("<img" in page.read_text(encoding="utf-8")) == shown, option
