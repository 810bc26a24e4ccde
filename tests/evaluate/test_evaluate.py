"""`evaluate` on a workspace: files, identity, resume, refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.samples import Item
from mmsurgery.errors import GateMissed, InputRefused, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.evaluate import asked, evaluate, gate, records, run, scorer
from mmsurgery.evaluate.scoring import score
from mmsurgery.provenance import canonical_json, seal, sha256
from mmsurgery.settings import Settings
from mmsurgery.workspace import Silent, Workspace


class Questions:
    """A benchmark of six columns' worth of two."""

    name = "questions"

    def __init__(self, image: bytes) -> None:
        options = {"A": "The city is oslo .", "B": "The city is lisbon ."}
        self.found = {
            "forget_vqa": [
                Item(
                    f"f{p}",
                    f"p{p}",
                    "What is this ?",
                    options=options,
                    gold="AB"[p % 2],
                    column="forget_vqa",
                    image_bytes=image,
                )
                for p in range(2)
            ],
            "retain_qa": [
                Item(f"r{p}", f"p{p}", f"Which {w} ?", options=options, gold="A", column="retain_qa")
                for p, w in enumerate(("city", "food"))
            ],
        }

    def columns(self, source: Any) -> tuple[str, ...]:
        return (*self.found, "empty")

    def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
        return self.found.get(column, []) if task == "classification" else []


@pytest.fixture
def questions(picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Questions:
    found = Questions(picture(1))
    monkeypatch.setattr(asked, "benchmark", lambda name: found)
    return found


@pytest.fixture
def workspace(tmp_path: Path, tiny_llava: Path, questions: Questions) -> Workspace:
    workspace = Workspace(tmp_path / "ws", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    return workspace


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in workspace.path("evals").iterdir()}


def test_record_and_items_belong_together(workspace: Workspace, questions: Questions) -> None:
    (result,) = evaluate(workspace)
    assert (result.model, result.path, result.up_to_date) == ("vanilla", workspace.eval_path("vanilla"), False)
    record = records.read_eval(result.path)
    assert record["kind"] == "eval"
    assert record["columns"] == result.columns
    assert list(result.columns) == ["forget_vqa", "retain_qa"]
    lines = [json.loads(text) for text in records.items_path(result.path).read_text().splitlines()]
    assert [entry["id"] for entry in lines] == ["f0", "f1", "r0", "r1"]
    assert set(lines[0]) == {
        "id", "person", "column", "prompt_sha256", "raw_output", "parsed", "gold", "correct", "option_scores",
    }  # fmt: skip
    for entry in lines:
        scores = entry["option_scores"]
        assert entry["parsed"] == max(scores, key=scores.get)
        assert entry["correct"] == (entry["parsed"] == entry["gold"])
    for column, value in result.columns.items():
        right = [entry["correct"] for entry in lines if entry["column"] == column]
        assert (value["n"], value["correct"], value["accuracy"]) == (2, sum(right), sum(right) / 2)
    assert record["items"] == {"n": 4, "sha256": sha256(records.items_path(result.path).read_bytes())}
    assert [entry["event"] for entry in workspace.journal_entries()] == ["eval"]


def test_scores_are_those_of_score(workspace: Workspace, questions: Questions, loaded_llava: Any) -> None:
    (result,) = evaluate(workspace)
    assert records.read_items(result.path) == {
        column: score(loaded_llava, items) for column, items in questions.found.items()
    }


def test_the_same_again_is_up_to_date(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = evaluate(workspace)
    before = contents(workspace)
    monkeypatch.setattr(scorer, "score", None)
    (again,) = evaluate(workspace)
    assert again.up_to_date
    assert (again.columns, again.remarks) == (first.columns, first.remarks)
    assert contents(workspace) == before


def test_other_items_are_refused_without_force(workspace: Workspace, questions: Questions) -> None:
    evaluate(workspace)
    before = contents(workspace)
    questions.found["retain_qa"].pop()
    with pytest.raises(Mismatch, match=r"vanilla.json holds scores with other inputs \(items\)"):
        evaluate(workspace)
    assert contents(workspace) == before
    (result,) = evaluate(workspace, force=True)
    assert result.columns["retain_qa"]["n"] == 1


def test_scores_of_other_items_are_named_together_and_noted_beside_others(
    workspace: Workspace, questions: Questions
) -> None:
    shutil.copytree(workspace.model_dir("vanilla"), workspace.model_dir("npo"))
    evaluate(workspace)
    questions.found["retain_qa"].pop()
    with pytest.raises(Mismatch, match=r"vanilla.json holds .*; so do those of npo") as caught:
        evaluate(workspace)
    assert caught.value.next_step == "mmsurgery eval vanilla npo --force"

    class Notes(Silent):
        notes: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    evaluate(workspace, ["vanilla"], force=True, progress=Notes())
    told = "the scores of 'npo' are about other items, they do not compare with these"
    assert Notes.notes.count(told) == 1
    evaluate(workspace, ["npo"], force=True, progress=Notes())
    assert not [note for note in Notes.notes if "about other items" in note and note != told]
    evaluate(workspace, ["vanilla"], progress=Notes())
    assert Notes.notes.count(told) == 1


def test_another_model_under_the_name_is_refused_before_anything_is_scored(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = workspace.model_dir("npo")
    shutil.copytree(workspace.model_dir("vanilla"), other)
    evaluate(workspace, ["npo"])
    _change_a_weight(other)
    monkeypatch.setattr(scorer, "score", None)
    with pytest.raises(Mismatch, match=r"npo.json holds scores with other inputs \(model_sha256 "):
        evaluate(workspace)
    assert not workspace.eval_path("vanilla").exists()


def test_default_is_every_model_but_base(workspace: Workspace) -> None:
    for name in ("npo", "base"):
        shutil.copytree(workspace.model_dir("vanilla"), workspace.path("models", name))
    results = evaluate(workspace)
    assert [result.model for result in results] == ["vanilla", "npo"]
    # equal weights, equal scores, whatever the name
    assert results[0].columns == results[1].columns


def test_a_model_by_path(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.model_dir("vanilla"), tmp_path / "elsewhere" / "mine")
    (result,) = evaluate(workspace, [str(tmp_path / "elsewhere" / "mine")])
    assert result.path == workspace.eval_path("mine")
    shutil.copytree(workspace.model_dir("vanilla"), tmp_path / "elsewhere" / "vanilla")
    (result,) = evaluate(workspace, [str(tmp_path / "elsewhere" / "vanilla")])
    assert result.path == workspace.eval_path("elsewhere.vanilla")
    shutil.copytree(workspace.model_dir("vanilla"), tmp_path / "other" / "mine")
    with pytest.raises(UsageError, match="two models are called 'mine'"):
        evaluate(workspace, [str(tmp_path / "elsewhere" / "mine"), str(tmp_path / "other" / "mine")])
    with pytest.raises(MissingArtifact, match="no model 'vanila'"):
        evaluate(workspace, ["vanila"])


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(workspace)
    undisturbed = contents(workspace)
    shutil.rmtree(workspace.path("evals"))
    scored: list[str] = []

    def interrupted(loaded: Any, items: Any, **options: Any) -> Any:
        scored.append(items[0].column)
        if scored == ["forget_vqa", "retain_qa"]:
            raise KeyboardInterrupt
        return score(loaded, items, **options)

    monkeypatch.setattr(scorer, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(workspace)
    assert not workspace.eval_path("vanilla").exists()
    evaluate(workspace)
    assert scored == ["forget_vqa", "retain_qa", "retain_qa"]
    assert contents(workspace) == undisturbed


def test_a_damaged_leftover_is_scored_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(workspace)
    undisturbed = contents(workspace)
    shutil.rmtree(workspace.path("evals"))
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_eval", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(workspace)
    leftovers = sorted(workspace.path("evals").rglob("*.json"))
    assert [p.name for p in leftovers] == ["forget_vqa.json", "origin.json", "retain_qa.json"]
    text = leftovers[0].read_text()
    leftovers[0].write_text(text.replace('"p0"', '"p9"', 1))
    evaluate(workspace)
    assert contents(workspace) == undisturbed


def test_damage_is_noticed_on_reading(workspace: Workspace) -> None:
    (result,) = evaluate(workspace)
    lines = records.items_path(result.path)
    whole = lines.read_bytes()
    lines.write_bytes(whole.replace(b'"correct": true', b'"correct": false', 1))
    with pytest.raises(InputRefused, match=r"items\.jsonl was changed or damaged"):
        records.read_eval(result.path)
    lines.unlink()
    with pytest.raises(InputRefused, match=r"items\.jsonl is missing"):
        evaluate(workspace)
    lines.write_bytes(whole)
    records.read_items(result.path)
    text = result.path.read_text()
    result.path.write_text(text.replace('"n":2', '"n":3', 1))
    with pytest.raises(InputRefused, match="changed or damaged"):
        evaluate(workspace)


def test_items_that_contradict_themselves_are_refused() -> None:
    good = {
        "id": "i", "person": "p", "column": "c", "prompt_sha256": "", "raw_output": None,
        "parsed": "A", "gold": "B", "correct": False, "option_scores": {"A": -1.0, "B": -2.0},
    }  # fmt: skip
    assert records.line(records.from_line(good, "x")) == good
    for change in ({"parsed": "B"}, {"correct": True}, {"person": 1}, {"option_scores": {}}, {"option_scores": 1}):
        with pytest.raises(InputRefused, match="x "):
            records.from_line({**good, **change}, "x")


def test_collapse_is_said(workspace: Workspace, questions: Questions) -> None:
    """Equal questions about one picture have equal answers, the golds are A and B."""
    (result,) = evaluate(workspace)
    assert result.remarks["forget_vqa"][0].endswith("to all 2 items: the model has collapsed")


def test_nothing_to_score(workspace: Workspace, questions: Questions) -> None:
    questions.found.clear()
    with pytest.raises(UnusableData, match="nothing that protocol likelihood can ask"):
        evaluate(workspace)


def test_gate(workspace: Workspace) -> None:
    results = evaluate(workspace)
    accuracy = results[0].columns["retain_qa"]["accuracy"]
    gate(results, f"retain_qa={accuracy}")
    gate(results, "retain_qa=0")
    low = [run.EvalResult("m", Path(), {"retain_qa": {"accuracy": 0.25}}, {}, False)]
    with pytest.raises(GateMissed, match=r"retain_qa is below 0.5: m 0.250"):
        gate(low, "retain_qa=0.5")
    gate(low, "retain_qa=0.25", over=True)
    with pytest.raises(GateMissed, match=r"retain_qa is above 0.2: m 0.250"):
        gate(low, "retain_qa=0.2", over=True)
    for wrong in ("retain_qa", "retain_qa=x", "retain_qa=95", "retain_qa=nan", "retain_qa=-1"):
        with pytest.raises(UsageError, match="is no gate"):
            gate(results, wrong)
    with pytest.raises(UsageError, match="no column 'retain_qas'"):
        gate(results, "retain_qas=0.5")


def _change_a_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)


def test_a_model_made_by_scored_text_says_so_whatever_the_settings_are(workspace: Workspace) -> None:
    folder = workspace.model_dir("npo")
    shutil.copytree(workspace.model_dir("vanilla"), folder)
    (evaluated,) = evaluate(workspace, ["npo"])
    assert not any("scored" in remark for remark in evaluated.remarks.get("retain_qa", ()))
    record = {"schema": 1, "kind": "run", "scored_text": 7, "model_sha256": _digest(folder), "provenance": {}}
    (folder / "mmsurgery-run.json").write_bytes(canonical_json(seal(record)))
    (marked,) = evaluate(workspace, ["npo"], force=True)
    told = "the saliency behind this model was measured on 7 text samples that are scored"
    assert told in marked.remarks["retain_qa"]
    assert told not in marked.remarks.get("forget_vqa", [])


def _digest(folder: Path) -> str:
    return CheckpointFiles(folder, backbone("llava").canonical).digest()


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("evals/npo.json", ""),
        ("evals/official-1-shot/subset-3/npo.json", " --protocol official --shots 1 --subset 3"),
        ("evals/requests/first/npo.json", " --request first"),
        ("evals/official-1-shot-scored/npo.json", " --protocol official --shots 1 --demonstrations scored"),
        ("elsewhere/npo.json", ""),
    ],
)
def test_what_is_damaged_says_the_command_that_makes_it_again(where: str, options: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(InputRefused) as caught:
        records.read_eval(path)
    assert caught.value.next_step == f"mmsurgery eval npo{options} --force"


def test_forget_quality_leaves_out_a_gold_model_that_is_stale(
    workspace: Workspace, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    truths = {"true": "The city is oslo .", "wrong1": "The city is lisbon ."}
    asked_before = questions.items

    def items(source: Any, column: str, task: str = "classification") -> list[Item]:
        found = asked_before(source, column)
        if task != "truth":
            return asked_before(source, column, task)
        return [dataclasses.replace(item, options=truths, gold="true", task=task) for item in found]

    monkeypatch.setattr(questions, "items", items)
    shutil.copytree(workspace.model_dir("vanilla"), workspace.model_dir("gold"))
    vanilla, _ = evaluate(workspace, ["vanilla", "gold"])
    assert vanilla.metrics["forget_quality"] == pytest.approx(1)

    def stale(workspace: Workspace, *models: str) -> None:
        if "gold" in models:
            raise Mismatch("model 'gold' was trained on other data")

    monkeypatch.setattr(run, "check_trained", stale)
    (alone,) = evaluate(workspace, ["vanilla"])
    assert alone.metrics["forget_quality"] is None
