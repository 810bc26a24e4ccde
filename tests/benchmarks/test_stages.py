"""Every stage runs on tiny models and yields the figures that it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import stages
from stages import Setup, diff, evaluation, masks, saliency, training


@pytest.fixture
def setup(work: Path) -> Setup:
    return Setup(work=work, sizes=("tiny",), families=("llava",), rounds=1, goals_from=0, options={"large": 0})


def test_saliency(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measure.can_watch", lambda: False)
    monkeypatch.setitem(saliency.BATCHES, "tiny", 1)
    found = list(saliency.run(setup))
    assert [(each.limit, each.stretch) for each in found] == [(1.15, 1.05), (1.25, 1.15), (0.85, 0.75), (1.0, None)]
    assert all(each.value > 0 for each in found)
    assert found[0].baseline
    assert found[3].value == 1, "a sample goes through the model once"


def test_passes_are_those_of_all_samples(setup: Setup) -> None:
    found = saliency.passes(setup, "qwen2_vl", "tiny")
    assert found.detail == {"samples": 36, "passes": 36, "parts": 4}


def test_masks(setup: Setup) -> None:
    found = {each.what: each for each in masks.run(setup)}
    assert {"mask of 4 verified parts", "count", "mask algebra ~", "first reading of 4 parts, digests verified"} <= set(
        found
    )
    assert found["mask of 4 verified parts"].limit == 5
    assert found["mask algebra ^"].limit == found["count"].limit == 0.05
    assert found["mask file"].value > 0.125
    assert not list(setup.work.glob("*.safetensors")), "what was measured is cleared away"


def test_layers_of_7b_have_their_shapes() -> None:
    shapes = masks.layers_of_7b(10**9)
    assert shapes["model.language_model.layers.4.mlp.down_proj.weight"] == (4096, 11008)
    assert 10**9 <= sum(a * b for a, b in shapes.values()) < 1.3 * 10**9


def test_training(setup: Setup) -> None:
    found = list(training.run(setup))
    assert [each.what for each in found] == ["masked steps, scope forget", "masked steps, scope all", "masked LoRA 16"]
    assert {(each.limit, each.stretch) for each in found} == {(1.08, 1.03)}


def test_diff(setup: Setup) -> None:
    found = list(diff.times(setup, "llava", "llava tiny", *diff.pair(setup.work, "llava", "tiny")))
    assert [(each.clock, each.limit) for each in found] == [("wall", 1.3), ("cpu", None)]


def test_evaluation(setup: Setup) -> None:
    found = list(evaluation.run(setup))
    assert [each.limit for each in found] == [0.5, 1.0]
    assert found[1].value == 1, "a picture goes through the vision tower once"
    assert found[1].detail["pictures"] == 12


def test_goals_are_for_large_models(setup: Setup) -> None:
    assert stages.Setup(work=setup.work, sizes=()).goal(29e6, 1.15, 1.05) == {"limit": None, "stretch": None}
    assert stages.Setup(work=setup.work, sizes=()).goal(30e6, 1.15, 1.05) == {"limit": 1.15, "stretch": 1.05}
