"""Vanilla must know what is to be forgotten and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsurgery.errors import GateMissed, MissingArtifact, UsageError
from mmsurgery.evaluate import EvalResult
from mmsurgery.evaluate.acceptance import accept, accept_vanilla, unknown_columns, warning
from mmsurgery.evaluate.records import write_eval
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace


def column(accuracy: float, low: float, chance: float | None = 0.25) -> dict[str, Any]:
    return {
        "protocol": "likelihood",
        "n": 40,
        "correct": round(40 * accuracy),
        "accuracy": accuracy,
        "chance": chance,
        "ci95": [low, 1.0],
    }


def test_an_interval_above_chance_is_knowledge() -> None:
    assert unknown_columns({"forget_vqa": column(0.5, 0.26), "retain_qa": column(0.9, 0.8)}) == {}
    found = unknown_columns({"forget_vqa": column(0.4, 0.25), "retain_qa": column(0.9, 0.8)})
    assert found == {"forget_vqa": "Forget VQA 40.0 % (25-100) is not above chance, 25.0 %"}
    # what is asked of nobody in training, and what has no chance, tells nothing
    assert unknown_columns({"test_vqa": column(0.1, 0.0), "retain_vqa.cloze": column(0.0, 0.0, None)}) == {}


def test_few_people_who_agree_are_not_enough() -> None:
    """2 of 6 by two people who are alike: the bootstrap's interval has no width, the questions are still six."""
    few = {**column(0.0, 1 / 3), "n": 6, "correct": 2, "accuracy": 1 / 3}
    assert list(unknown_columns({"forget_qa": few})) == ["forget_qa"]
    assert unknown_columns({"forget_qa": {**few, "correct": 6, "accuracy": 1.0, "ci95": [1.0, 1.0]}}) == {}


def test_accepting_is_about_vanilla() -> None:
    def result(model: str, accuracy: float) -> EvalResult:
        return EvalResult(model, Path(), {"forget_vqa": column(accuracy, accuracy - 0.05)}, {}, False)

    assert accept_vanilla([result("gold", 0.1), result("vanilla", 0.9)]).endswith("accepted")
    with pytest.raises(GateMissed):
        accept_vanilla([result("gold", 0.9), result("vanilla", 0.2)])
    with pytest.raises(UsageError, match="about vanilla"):
        accept_vanilla([result("gold", 0.9)])


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(GateMissed, match=r"'vanilla' does not know what it should: Retain QA 20.0 %") as caught:
        accept({"forget_vqa": column(0.9, 0.8), "retain_qa": column(0.2, 0.1)}, "vanilla")
    assert caught.value.code == 1
    accept({"forget_vqa": column(0.9, 0.8)}, "vanilla")
    with pytest.raises(MissingArtifact, match="nothing says whether"):
        accept({"forget_vqa.cloze": column(0.9, 0.8, None)}, "vanilla")


def test_before_unlearning(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Settings())
    assert "vanilla was not scored" in str(warning(workspace))

    def scored(accuracy: float, low: float) -> None:
        body = {"model": "vanilla", "columns": {"forget_vqa": column(accuracy, low)}, "remarks": {}, "provenance": {}}
        write_eval(workspace.eval_path("vanilla"), body, [ItemScore("i", "p", "forget_vqa", "x", {"A": -1.0}, "A")])

    scored(0.3, 0.2)
    assert "vanilla does not know what is to be forgotten: Forget VQA 30.0 %" in str(warning(workspace))
    scored(0.9, 0.8)
    assert warning(workspace) is None
    workspace.eval_path("vanilla").write_text("{")
    assert "is not valid JSON" in str(warning(workspace))
