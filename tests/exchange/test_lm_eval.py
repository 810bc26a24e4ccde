"""Scores as lm-evaluation-harness writes its own: places, keys, values of every kind of column."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.artifacts.find import EXCHANGED, find
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UsageError
from mmsurgery.evaluate import columns
from mmsurgery.evaluate.official import Answer
from mmsurgery.evaluate.records import items_path, write_eval
from mmsurgery.evaluate.rouge import RougeL
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.exchange.export import export
from mmsurgery.exchange.lm_eval import TIME, metrics_of
from mmsurgery.provenance import provenance, sha256
from mmsurgery.settings import Settings
from mmsurgery.workspace import Silent, Workspace

MODEL = {"model_sha256": "a" * 64, "companions_sha256": "c" * 64}


def scored(column: str, golds: str) -> list[ItemScore]:
    """Items, two a person, that a model answers with A."""
    return [
        ItemScore(f"{column}/{n}", f"p{n // 2}", column, "d" * 64, {"A": -0.5, "B": -1.25}, gold)
        for n, gold in enumerate(golds)
    ]


def answered(column: str, task: str, outputs: Sequence[str], gold: str, **more: Any) -> list[Answer]:
    return [
        Answer(f"{column}/{n}", f"p{n}", column, task, "e" * 64, output, gold, **more)
        for n, output in enumerate(outputs)
    ]


def write(workspace: Workspace, items: Sequence[Any], protocol: str = "likelihood", **settings: Any) -> Path:
    """The record of model `npo`, as `evaluate` writes it."""
    by_column: dict[str, list[Any]] = {}
    for item in items:
        by_column.setdefault(item.column, []).append(item)
    path = workspace.eval_path("npo", protocol, settings.get("request"), settings.get("subset"))
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"protocol": protocol, "budget": 4096, "resamples": 2000, "seed": 0, "threads": 1, **settings}
    body = {
        "model": "npo",
        "columns": {column: columns.summary(each, protocol) for column, each in by_column.items()},
        "remarks": {},
        "provenance": provenance("eval", settings, {**MODEL, "items": dict.fromkeys(by_column, "b" * 64)}),
    }
    write_eval(path, body, items)
    return path


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path, Settings())
    truth = {"true": math.log(0.5), "wrong1": math.log(0.25)}
    caption = [ItemScore(f"c{n}", f"p{n}", "forget_caption.truth", "d" * 64, truth, "true") for n in range(2)]
    write(workspace, [*scored("forget_vqa", "ABBB"), *scored("forget_perception", "AB"), *caption])
    return workspace


def results(folder: Path) -> Any:
    return json.loads((folder / "npo" / f"results_{TIME}.json").read_text())


def samples(folder: Path, task: str) -> list[Any]:
    return [json.loads(line) for line in (folder / "npo" / f"samples_{task}_{TIME}.jsonl").read_text().splitlines()]


def test_results_have_the_keys_and_the_numbers(ws: Workspace) -> None:
    done = export(ws, "evals/npo", format="lm-eval")
    assert (done.kind, done.path, done.details) == (
        "eval",
        ws.path("exports", "npo.lm-eval"),
        {"tasks": 3, "samples": 8},
    )
    found = results(done.path)
    tasks = [f"mmsurgery_portraits_{c}" for c in ("forget_vqa", "forget_perception", "forget_caption_truth")]
    for key in ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert list(found[key]) == tasks, key
    assert (found["git_hash"], found["date"], found["config"]["model"]) == (None, 0.0, "npo")
    assert found["config"]["model_args"] == {"pretrained": "npo", **MODEL}
    vqa = found["results"][tasks[0]]
    low, high = columns.summary(scored("forget_vqa", "ABBB"))["ci95"]
    assert (vqa["alias"], vqa["acc,none"], vqa["sample_len"]) == ("forget_vqa", 0.25, 4)
    assert vqa["acc_stderr,none"] == pytest.approx((high - low) / 2 / 1.96)
    assert vqa["acc_stderr,none"] > 0
    assert found["results"][tasks[1]]["acc_stderr,none"] == "N/A"  # one person
    kept = found["results"][tasks[2]]
    assert (kept["probability,none"], kept["truth_ratio,none"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found["n-samples"][tasks[0]] == {"original": 4, "effective": 4}
    assert [found["configs"][task]["output_type"] for task in tasks] == ["multiple_choice"] * 2 + ["loglikelihood"]
    assert found["configs"][tasks[0]]["metadata"]["protocol"] == "likelihood"


def test_which_end_is_better(ws: Workspace) -> None:
    better = results(export(ws, "evals/npo", format="lm-eval").path)["higher_is_better"]
    assert better == {
        "mmsurgery_portraits_forget_vqa": {"acc": False},
        "mmsurgery_portraits_forget_perception": {"acc": True},
        "mmsurgery_portraits_forget_caption_truth": {"probability": False, "truth_ratio": None},
    }
    kept = ("forget_qa", "retain_vqa", "retain_qa", "realworld_vqa", "realworld_qa", "realface_vqa", "retain_caption")
    for column in ("forget_vqa", "forget_vqa.cloze", "test_vqa", "forget_caption.generation", *kept):
        items = scored(column, "AB")
        assert metrics_of(column, columns.summary(items), items)["acc"].higher_is_better is (column in kept), column


def test_samples_of_options(ws: Workspace) -> None:
    folder = export(ws, "evals/npo", format="lm-eval").path
    task = "mmsurgery_portraits_forget_vqa"
    lines = samples(folder, task)
    assert [line["acc"] for line in lines] == [1, 0, 0, 0]
    first = lines[1]
    doc = {"id": "forget_vqa/1", "person": "p0", "options": ["A", "B"]}
    assert first == {
        "doc_id": 1,
        "doc": doc,
        "target": "B",
        "arguments": {},
        "resps": [[["-0.5", "None"]], [["-1.25", "None"]]],
        "filtered_resps": [["-0.5", "None"], ["-1.25", "None"]],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": sha256(json.dumps(doc, indent=2).encode()),
        "prompt_hash": "d" * 64,
        "target_hash": sha256(b"B"),
        "acc": 0.0,
    }
    whole = "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
    assert results(folder)["task_hashes"][task] == sha256(whole.encode())
    ratio = samples(folder, "mmsurgery_portraits_forget_caption_truth")[0]
    assert (ratio["probability"], ratio["truth_ratio"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_written_answers(tmp_path: Path) -> None:
    ws = Workspace(tmp_path, Settings())
    letters = answered("retain_vqa", "classification", ["A", "?", "B."], "A", letters=("A", "B"))
    cloze = answered("retain_vqa.cloze", "cloze", ["Oslo", "Osloer"], "oslo")
    opened = answered("retain_vqa.generation", "generation", ["Bees"], "She keeps bees", rouge=RougeL(0.5, 1 / 3))
    write(ws, [*letters, *cloze, *opened], "official-1-shot", shots=1, new_tokens=50, subset=3)
    done = export(ws, "evals/official-1-shot/subset-3/npo", format="lm-eval")
    assert done.path == ws.path("exports", "official-1-shot.subset-3.npo.lm-eval")
    found, task = results(done.path), "mmsurgery_portraits_retain_vqa"
    numbers = [found["results"][name] for name in (task, f"{task}_cloze", f"{task}_generation")]
    assert (numbers[0]["acc,none"], numbers[0]["unparsed,none"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (numbers[1]["acc,none"], numbers[1]["whole_words,none"]) == (1.0, 0.5)
    assert (numbers[2]["rougeL_f1,none"], numbers[2]["rougeL_recall,none"]) == (0.5, pytest.approx(1 / 3))
    assert found["higher_is_better"][task] == {"acc": True, "unparsed": False}
    assert found["n-shot"][task] == 1
    assert found["configs"][task]["output_type"] == "generate_until"
    assert found["config"]["limit"] == 3
    # how many there were before the subset was drawn is known only where they were fewer
    counts = [found["n-samples"][name]["original"] for name in (task, f"{task}_cloze")]
    assert counts == [None, 2]
    second = samples(done.path, task)[1]
    assert (second["resps"], second["filtered_resps"], second["acc"], second["unparsed"]) == ([["?"]], ["?"], 0.0, 1.0)
    assert samples(done.path, f"{task}_generation")[0]["rougeL_recall"] == pytest.approx(1 / 3)


def test_equal_scores_give_equal_bytes(ws: Workspace) -> None:
    export(ws, "evals/npo", format="lm-eval")
    ws.journal("eval", model="npo", protocol="likelihood")
    assert export(ws, "evals/npo", format="lm-eval").up_to_date
    write(ws, scored("forget_vqa", "AABB"))
    with pytest.raises(Mismatch, match="with other content"):
        export(ws, "evals/npo", format="lm-eval")


def test_a_path_is_a_record_and_must_be_an_eval(ws: Workspace, tmp_path: Path) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.told: list[str] = []

        def note(self, text: str) -> None:
            self.told.append(text)

    inside, outside = Notes(), Notes()
    done = export(ws, str(ws.eval_path("npo")), format="lm-eval", progress=inside)
    assert (done.kind, done.name, done.path.name, inside.told) == ("record", "npo", "npo.lm-eval", [])
    other = Workspace(tmp_path / "other", Settings())
    export(ws, str(write(other, scored("forget_vqa", "AB"))), format="lm-eval", force=True, progress=outside)
    assert "named after the benchmark here, portraits" in outside.told[0]
    (tmp_path / "diff.json").write_text('{"schema": 1, "kind": "diff", "provenance": {}}')
    with pytest.raises(InputRefused, match="is no eval"):
        export(ws, str(tmp_path / "diff.json"), format="lm-eval")
    items_path(ws.eval_path("npo")).write_text("{}\n")
    with pytest.raises(InputRefused, match="was changed or damaged"):
        export(ws, "evals/npo", format="lm-eval")


def test_names_and_kinds(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="'evals/npo' is an eval") as caught:
        export(ws, "evals/npo", format="numpy")
    assert "lm-eval" in str(caught.value)
    with pytest.raises(MissingArtifact):  # what can be pushed is as it was
        find(ws, "evals/npo", EXCHANGED)
    ws.path("models", "npo").mkdir(parents=True)
    ws.path("models", "npo", "config.json").write_text("{}")
    with pytest.raises(UsageError, match="'npo' is a model") as caught:
        export(ws, "npo", format="lm-eval")
    assert "name evals/npo" in str(caught.value)


def test_columns_of_an_interrupted_run_are_no_evals(ws: Workspace) -> None:
    unfinished = ws.path("evals", ".scoring", "npo2", "key", "forget_vqa.json")
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("{}")
    with pytest.raises(MissingArtifact, match=r"there is: npo\b(?!2)"):
        export(ws, "forget_vqa", format="lm-eval")
    with pytest.raises(MissingArtifact):
        export(ws, "evals/.scoring/npo2/key/forget_vqa", format="lm-eval")
