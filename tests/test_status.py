"""`status`: what stands where, each model after the one it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsurgery.api import Workspace
from mmsurgery.artifacts.find import find
from mmsurgery.settings import BenchmarkSettings, Settings
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
        "evals/.scoring/first/0123/forget_vqa.json",
        "evals/.hidden.json",
        "patches/npo.safetensors",
        "patches/.partial.safetensors",
        "models/.resume-npo.default-0123456789ab/x",
        "saliency/.resume-retain_vqa/x",
    ):
        workspace.path(path).parent.mkdir(parents=True, exist_ok=True)
        workspace.path(path).write_text("{}")
    found = status(workspace)
    assert found.evals == ["vanilla", "official/vanilla", "requests/first/second"]
    assert found.patches == ["npo"]
    assert found.unfinished == ["evals/first", "models/npo.default", "saliency/retain_vqa"]


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
