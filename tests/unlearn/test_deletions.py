"""Deletion requests one after the other: nobody forgotten earlier is trained on again, and each can be asked about."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.data.benchmark import Source
from mmsurgery.data.samples import Item, data_sha256
from mmsurgery.errors import InputRefused, MissingArtifact, UnusableData, UsageError
from mmsurgery.evaluate import asked as asked_module
from mmsurgery.evaluate import run
from mmsurgery.evaluate.request import Requested, requested
from mmsurgery.provenance import canonical_json, seal
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.deletions import digest_of, earlier_requests, read_request
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import Workspace


def named(benchmark: Any) -> None:
    """Give every sample a person of its own."""
    for part, samples in benchmark.sets.items():
        benchmark.sets[part] = [dataclasses.replace(sample, person=f"person/{sample.id}") for sample in samples]


@pytest.fixture
def second_request(ws: Workspace, tiny: Any) -> Workspace:
    """A workspace with a model `first`, in which two retain people are to be forgotten now."""
    named(tiny)
    apply(ws, "ga_diff", name="first")
    forgotten, kept = tiny.sets["forget_vqa"], tiny.sets["retain_vqa"]
    tiny.sets = {
        "forget_vqa": [dataclasses.replace(sample, part="forget_vqa") for sample in kept[:2]],
        "retain_vqa": [dataclasses.replace(sample, part="retain_vqa") for sample in [*kept[2:], *forgotten]],
    }
    return ws


def test_nobody_forgotten_earlier_is_kept_again(second_request: Workspace, tiny: Any) -> None:
    result = apply(second_request, "ga_diff", start="first", name="second")
    kept = [sample for sample in tiny.sets["retain_vqa"] if sample.id.startswith("retain")]
    assert len(kept) == 3
    assert result.record["provenance"]["inputs"]["retain"] == data_sha256(kept)
    assert earlier_requests(second_request, "second") == {
        "second": ["person/retain0", "person/retain1"],
        "first": [f"person/forget{i}" for i in range(4)],
    }
    assert verify(second_request, "second").ok
    # from vanilla, which forgot nobody, they are retain people as any other
    fresh = apply(second_request, "ga_diff", name="fresh")
    assert fresh.record["provenance"]["inputs"]["retain"] == data_sha256(tiny.sets["retain_vqa"])


def test_a_merged_adapter_in_between_hides_no_request(second_request: Workspace) -> None:
    ws = second_request
    shutil.copytree(ws.model_dir("first"), ws.model_dir("merged"))
    path = ws.model_dir("merged") / "mmsurgery-run.json"
    record = {**json.loads(path.read_text()), "model": "merged", "method": "import", "start": "first"}
    del record["request"]
    path.write_bytes(canonical_json(seal(record)))
    assert list(earlier_requests(ws, "merged")) == ["first"]


def test_a_record_names_nobody(second_request: Workspace) -> None:
    text = (second_request.model_dir("first") / "mmsurgery-run.json").read_text()
    record = json.loads(text)
    people = [f"person/forget{i}" for i in range(4)]
    assert record["request"] == digest_of(people)
    assert read_request(second_request, "first") == people
    assert not [person for person in people if person in text]


def test_a_request_that_is_gone_or_another_stops_the_next(second_request: Workspace) -> None:
    path = second_request.request_path(digest_of(read_request(second_request, "first")))
    text = path.read_text()
    path.unlink()
    with pytest.raises(MissingArtifact, match="whom 'first' was made to forget"):
        apply(second_request, "ga_diff", start="first", name="second")
    path.write_text(text.replace("forget0", "forget9"))
    with pytest.raises(InputRefused):
        apply(second_request, "ga_diff", start="first", name="second")
    path.unlink()
    assert apply(second_request, "ga_diff", name="fresh").record["request"] != digest_of([])
    assert not second_request.model_dir("second").exists()


def test_nobody_left_to_keep(second_request: Workspace, tiny: Any) -> None:
    tiny.sets["retain_vqa"] = [s for s in tiny.sets["retain_vqa"] if s.id.startswith("forget")]
    with pytest.raises(UnusableData, match="were forgotten by first"):
        apply(second_request, "ga_diff", start="first", name="second")


def test_a_model_that_forgot_nobody_has_no_request(ws: Workspace) -> None:
    apply(ws, "ga", name="gone")
    path = ws.model_dir("gone") / "mmsurgery-run.json"
    record = json.loads(path.read_text())
    del record["request"], record["provenance"]["seal"]
    path.write_bytes(canonical_json(seal(record)))
    with pytest.raises(UsageError, match="made to forget nobody"):
        read_request(ws, "gone")
    assert earlier_requests(ws, "gone") == earlier_requests(ws, "vanilla") == {}


# asking about an earlier request


class Asked:
    """Forget people f, retain people r, a column about the forget people alone, one about celebrities."""

    name = "asked"

    def __init__(self, forget: list[str], retain: list[str]) -> None:
        self.people = {"forget_vqa": forget, "retain_vqa": retain, "test_vqa": forget, "realworld_vqa": ["c1"]}

    def parts(self, source: Any) -> tuple[str, ...]:
        return ("forget_vqa",)

    def columns(self, source: Any) -> tuple[str, ...]:
        return tuple(self.people)

    def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
        options = {"A": "The city is lisbon .", "B": "The city is oslo ."}
        return [
            Item(f"{column}/{p}", p, "What is this ?", column=column, options=options, gold="A")
            for p in self.people[column]
            if task == "classification"
        ]

    def samples(self, source: Any, part: str) -> list[Any]:
        return self.items(source, "forget_vqa")


def asked(reader: Requested, column: str) -> list[str]:
    items = reader.items(Source(Path(), 10), column)
    assert {item.column for item in items} <= {column}
    return [item.person for item in items]


def test_columns_about_an_earlier_request() -> None:
    now = Asked(["p3", "p4"], ["p1", "p2", "p5", "p6"])
    reader = Requested(now, frozenset({"p1", "p4"}), frozenset({"p1", "p2", "p4"}))
    assert asked(reader, "forget_vqa") == ["p4", "p1"]
    assert asked(reader, "retain_vqa") == ["p5", "p6"]
    assert asked(reader, "test_vqa") == ["p4"]
    assert asked(reader, "realworld_vqa") == ["c1"]


def test_evaluating_an_earlier_request(second_request: Workspace, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(second_request, "ga_diff", start="first", name="second")
    reader = Asked(["person/retain0", "person/retain1"], [f"person/forget{i}" for i in range(4)])
    monkeypatch.setattr(asked_module, "benchmark", lambda name: reader)
    found = run.evaluate(second_request, ["first", "second"], request="first")
    assert [result.columns["forget_vqa"]["n"] for result in found] == [4, 4]
    assert "retain_vqa" not in found[0].columns
    assert found[1].path == second_request.path("evals", "requests", "first", "second.json")
    assert all(result.up_to_date for result in run.evaluate(second_request, ["first", "second"], request="first"))
    assert requested(second_request, reader, "second").forgotten == {
        *read_request(second_request, "first"), *read_request(second_request, "second")
    }  # fmt: skip
