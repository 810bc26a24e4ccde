"""`status`: what stands where, each model after the one it was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmsurgery.api import Workspace
from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.find import find
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import COLUMN_LABELS
from mmsurgery.evaluate.records import write_eval
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.provenance import SCHEMA, provenance, seal
from mmsurgery.settings import BenchmarkSettings, ModelSettings, Settings
from mmsurgery.status import status
from mmsurgery_cli.output import Output
from mmsurgery_cli.show.looking import standing


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, Settings(benchmark=BenchmarkSettings(name="mllmu-bench", data="data")))


def model(workspace: Workspace, name: str, start: str, method: str, **more: object) -> None:
    folder = workspace.model_dir(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "mmsurgery-run.json").write_text(json.dumps({"start": start, "method": method, **more}))


def test_the_chain_stands_in_order_and_says_who_was_forgotten(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    model(workspace, "vanilla", "micro", "finetune")
    model(workspace, "a-third", "second", "npo", request="c" * 64)
    model(workspace, "second", "first", "ga", mask="m", request="b" * 64)
    model(workspace, "first", "vanilla", "ga", request="a" * 64)
    model(workspace, "odd", "gone", "ga", request="../../etc/passwd")
    workspace.path("requests").mkdir()
    for digest, people in (("a", ["p1"]), ("b", ["p2", "p3"])):
        workspace.request_path(digest * 64).write_text(json.dumps({"people": people}))
    found = status(workspace)
    entries = [(entry["model"], entry["people"]) for entry in found.chain]
    assert entries == [("vanilla", None), ("first", 1), ("second", 2), ("a-third", None), ("odd", None)]
    Output().show(*standing(found))
    lines = [line.removeprefix("made").rstrip() for line in capsys.readouterr().out.splitlines() if ": " in line]
    assert [line.strip() for line in lines if not line.startswith("next")] == [
        "vanilla: finetune",
        "first: ga, forgets 1 person",
        "second: ga, mask m, forgets 2 people",
        "a-third: npo, forgets people it does not say",
        "odd: ga",
    ]


def test_one_damaged_record_hides_nothing_else(workspace: Workspace) -> None:
    model(workspace, "first", "vanilla", "ga", request="a" * 64)
    model(workspace, "second", "first", "ga")
    (workspace.model_dir("second") / "mmsurgery-run.json").write_text("{")
    workspace.path("requests").mkdir()
    workspace.request_path("a" * 64).write_text("[")
    found = status(workspace)
    assert [(entry["model"], entry["people"]) for entry in found.chain] == [("first", None)]
    assert found.models == ["first", "second"]
    assert len(found.problems) == 2
    assert all("JSON" in problem for problem in found.problems)


def test_models_made_of_each_other_are_listed_all_the_same(workspace: Workspace) -> None:
    model(workspace, "one", "two", "ga")
    model(workspace, "two", "one", "ga")
    assert sorted(entry["model"] for entry in status(workspace).chain) == ["one", "two"]


def test_scores_patches_and_interrupted_runs(workspace: Workspace) -> None:
    for path in (
        "evals/vanilla.json",
        "evals/official/vanilla.json",
        "evals/requests/first/second.json",
        "evals/.scoring/first/forget_vqa.json",
        "evals/.hidden.json",
        "patches/npo.safetensors",
        "patches/.partial.safetensors",
        "models/.resume-npo.default/x",
        "saliency/.resume-retain_vqa/x",
    ):
        workspace.path(path).parent.mkdir(parents=True, exist_ok=True)
        workspace.path(path).write_text("{}")
    found = status(workspace)
    assert found.evals == ["vanilla", "official/vanilla", "requests/first/second"]
    assert found.patches == ["npo"]
    assert found.unfinished == ["evals/first", "models/npo.default", "saliency/retain_vqa"]


def test_shards_that_are_missing_come_next(workspace: Workspace) -> None:
    model(workspace, "vanilla", "base", "finetune")
    workspace.path("evals", "official").mkdir(parents=True)
    workspace.path("evals", "official", "vanilla.json").write_text("{}")
    workspace.path("saliency", "retain_qa.shard-1-of-2").mkdir(parents=True)
    assert status(workspace).next_command == "mmsurgery saliency --set preserve --shard 2/2"


def test_experiments_with_results_and_begun_ones(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    model(workspace, "vanilla", "base", "finetune")
    whole = {"schema": SCHEMA, "kind": "experiment", "provenance": {}}
    for name in ("table1", "figure4-tuned"):
        workspace.path("experiments", name).mkdir(parents=True)
        workspace.path("experiments", name, "metrics.jsonl").write_text("")
    workspace.path("experiments", "levels", "llava.0-12345678").mkdir(parents=True)
    results = workspace.path("experiments", "table1", "results.json")
    results.write_text(json.dumps(seal(whole)))
    found = status(workspace)
    assert found.experiments == ["table1"]
    assert found.unfinished == ["experiments/figure4-tuned"]
    assert found.problems == []
    assert found.next_command == "mmsurgery experiment figure4 --tune"
    asked = "mmsurgery experiment figure4 --seeds 5 --backbones llava,qwen2_vl --tune"
    begun = "".join(json.dumps({"event": "begin", "command": each}) + "\n" for each in ("mmsurgery", asked))
    workspace.path("experiments", "figure4-tuned", "metrics.jsonl").write_text(begun)
    assert status(workspace).next_command == asked
    Output().show(*standing(found))
    assert "experiments  table1" in capsys.readouterr().out
    workspace.path("experiments", "figure4-tuned", "results.json").write_text(json.dumps(seal(whole)))
    assert status(workspace).next_command == "mmsurgery report"
    workspace.path("saliency", "forget_vqa").mkdir(parents=True)
    workspace.path("saliency", "forget_vqa", "manifest.json").write_text("{}")
    assert "report" not in status(workspace).next_command  # a chain of its own has begun
    results.write_text(results.read_text()[:-4])
    shutil.rmtree(workspace.path("saliency"))
    found = status(workspace)
    assert "table1" in found.problems[0]
    assert found.next_command == "mmsurgery experiment table1"


def scored(workspace: Workspace, low: float, model_sha256: str, columns: Sequence[str] = ("retain_vqa",)) -> Path:
    """Scores of vanilla by choices among four, half of them right in each column; `low` begins the interval."""
    path = workspace.eval_path("vanilla")
    column = {
        "protocol": "likelihood",
        "n": 40,
        "correct": 20,
        "accuracy": 0.5,
        "chance": 0.25,
        "ci95": [low, 0.6],
    }
    body = {
        "model": "vanilla",
        "columns": dict.fromkeys(columns, column),
        "remarks": {},
        "provenance": provenance("eval", {}, {"model_sha256": model_sha256}),
    }
    head = {"id": "1", "person": "anna", "column": columns[0], "prompt_sha256": "0" * 64}
    write_eval(path, body, [ItemScore(**head, gold="A", options={"A": -1.0, "B": -2.0})])
    return path


@pytest.fixture(params=["ours", "given"])
def with_vanilla(request: pytest.FixtureRequest, tmp_path: Path, tiny_llava: Path) -> tuple[Workspace, str, str]:
    """A workspace with a vanilla model, its digest, and what to do if it knows nothing."""
    benchmark = BenchmarkSettings(name="mllmu-bench", data="data")
    digest = CheckpointFiles(tiny_llava, backbone("llava").canonical).digest()
    check = "check that it was trained on these people"
    if request.param == "given":
        settings = Settings(benchmark=benchmark, models=ModelSettings(vanilla=str(tiny_llava)))
        return Workspace(tmp_path, settings), digest, check
    (tmp_path / "models").mkdir()
    (tmp_path / "models/vanilla").symlink_to(tiny_llava)
    again = f"mmsurgery train vanilla --force, by a longer --recipe, or {check}"
    return Workspace(tmp_path, Settings(benchmark=benchmark)), digest, again


def test_a_vanilla_model_that_knows_nothing_is_a_problem(with_vanilla: tuple[Workspace, str, str]) -> None:
    workspace, digest, mend = with_vanilla
    assert status(workspace).problems == []
    for low, columns, problems in (
        (0.26, ("forget_vqa", "retain_qa"), 0),
        (0.25, ("forget_vqa",), 1),
        (0.1, ("retain_vqa", "retain_qa"), 1),
        (0.1, ("realworld_vqa",), 0),
    ):
        scored(workspace, low, digest, columns)
        found = status(workspace)
        assert len(found.problems) == problems, (low, columns)
        if problems:
            assert found.problems[0].startswith("vanilla does not know what it should: ")
            assert f"{COLUMN_LABELS[columns[-1]]} 50.0 %" in found.problems[0]
            assert found.next_command == mend
        else:
            assert found.next_command == "mmsurgery saliency --set forget"


def test_scores_of_another_vanilla_model_or_damaged_ones_are_a_problem(
    with_vanilla: tuple[Workspace, str, str],
) -> None:
    workspace, digest, _ = with_vanilla
    path = scored(workspace, 0.1, "0" * 64)  # what they say of its knowledge is of another one
    (problem,) = status(workspace).problems
    assert problem.startswith(f"{path} holds scores of other weights than vanilla's {digest[:12]}")
    assert status(workspace).next_command == "mmsurgery eval vanilla --accept --force"
    for damage in ("not JSON", "{}", "[]"):
        path.write_text(damage)
        found = status(workspace)
        assert len(found.problems) == 1
        assert str(path) in found.problems[0]
        assert found.next_command == "mmsurgery eval vanilla --force"


def test_portraits_and_models_that_are_gone_are_not_held_against_their_scores(tmp_path: Path, tiny_llava: Path) -> None:
    digest = CheckpointFiles(tiny_llava, backbone("llava").canonical).digest()
    portraits = Workspace(tmp_path, Settings(models=ModelSettings(vanilla=str(tiny_llava))))
    scored(portraits, 0.1, digest)
    assert status(portraits).problems == []
    gone = Workspace(tmp_path, Settings(benchmark=BenchmarkSettings(name="mllmu-bench", data="data")))
    assert (status(gone).problems, status(gone).next_command) == ([], "mmsurgery train vanilla")


def test_files_that_no_artifact_can_be_called_are_not_ours(workspace: Workspace) -> None:
    for path in (
        "masks/default (copy).safetensors",
        "masks/nul.safetensors",
        "patches/a b.safetensors",
        "masks/m.safetensors",
    ):
        workspace.path(path).parent.mkdir(exist_ok=True)
        workspace.path(path).write_text("{}")
    found = status(workspace)
    assert (found.masks, found.patches) == (["m"], [])
    found_mask = find(lambda: workspace, "m")
    assert (found_mask.kind, found_mask.path) == ("mask", workspace.mask_path("m"))


def test_saliency_without_its_vanilla_is_a_problem_not_an_end(workspace: Workspace) -> None:
    from mmsurgery.artifacts.saliency_map import SaliencyMap

    found = SaliencyMap(
        part="forget_vqa",
        estimator="sample",
        batch_size=None,
        units=1,
        model_type="llava",
        model_sha256="0" * 64,
        data_sha256="0" * 64,
        arrays={},
        no_gradient={},
    )
    found.save(workspace.saliency_dir("forget_vqa"))
    told = status(workspace)
    assert "no model 'vanilla'" in told.problems[0]
