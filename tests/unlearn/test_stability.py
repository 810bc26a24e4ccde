"""`inspect --stability`: masks from other measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mmsurgery import stability
from mmsurgery.artifacts.mask import Mask
from mmsurgery.data.samples import Sample
from mmsurgery.errors import Mismatch, UsageError
from mmsurgery.masks import build, stale
from mmsurgery.saliency import parts
from mmsurgery.stability import measure_stability, shuffled_answers
from mmsurgery.workspace import Workspace


@pytest.fixture
def measured(ws: Workspace, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace with a mask `ratio` by beta."""
    tiny.sets = {part: [replace(s, person=s.id) for s in found] for part, found in tiny.sets.items()}
    for module in (stability, build, parts, stale):
        monkeypatch.setattr(module, "benchmark", lambda name: tiny)
    monkeypatch.setattr(parts, "check_text", lambda *arguments: 0)
    build.build_mask(ws, name="ratio", modules="lm,connector")
    return ws


def test_the_mask_comes_back_and_the_result_is_kept(measured: Workspace) -> None:
    path = measured.mask_path("ratio")
    result = measure_stability(measured, path)
    record, mask = result.record, Mask.load(path)
    pairs = {(each["first"], each["second"]): each for each in record["comparisons"]}
    assert list(pairs) == [
        ("even", "odd"),
        ("sample", "batch"),
        ("sample", "dataset"),
        ("batch", "dataset"),
        ("answers", "shuffled"),
    ]
    assert (record["split"], record["samples"]) == ("person", {"forget_vqa": 4, "retain_vqa": 5})
    assert record["rebuilt_iou"] == 1.0
    assert pairs["sample", "batch"]["selected"][0] == mask.selected
    assert all(0 < each["iou"] < 1 for each in record["comparisons"])
    assert set(pairs["even", "odd"]["same_count"]["selected"]) == {mask.selected}
    assert json.loads(result.path.read_text()) == record
    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/stability.json").read_text())
    Draft202012Validator(schema).validate(record)
    for key in schema["required"]:
        assert not Draft202012Validator(schema).is_valid({k: v for k, v in record.items() if k != key})
    before = result.path.read_bytes()
    again = measure_stability(measured, path)
    assert (again.up_to_date, result.up_to_date, result.path.read_bytes()) == (True, False, before)
    result.path.write_text("{")
    assert not measure_stability(measured, path).up_to_date
    assert result.path.read_bytes() == before


def test_what_cannot_be_made_again_is_refused(measured: Workspace, tiny: Any) -> None:
    with pytest.raises(UsageError, match="rule random"):
        measure_stability(measured, measured.mask_path("default"))
    tiny.sets["forget_vqa"] = tiny.sets["forget_vqa"][:3]
    with pytest.raises(Mismatch, match="other data of forget_vqa"):
        measure_stability(measured, measured.mask_path("ratio"))


def test_everybody_gets_the_answer_of_another() -> None:
    people = ["a", "a", "b", "c", "c", "c", "d"] * 2
    samples = [Sample(str(i), p, "?", answer=f"{p}{i}", part="forget_vqa") for i, p in enumerate(people)]
    shuffled = shuffled_answers(samples)
    assert shuffled is not None
    assert all(other.answer[0] != own.person for own, other in zip(samples, shuffled, strict=True))
    assert sorted(s.answer for s in shuffled) == sorted(s.answer for s in samples)
    assert [s.id for s in shuffled] == [s.id for s in samples]
    assert shuffled_answers(samples) == shuffled
    assert shuffled_answers(samples[:1]) is None
