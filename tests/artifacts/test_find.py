"""Names are looked up in one way, whichever verb asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsurgery.artifacts.find import EXCHANGED, find
from mmsurgery.errors import MissingArtifact, UsageError
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for file in (
        "masks/npo.safetensors",
        "models/npo/config.json",
        "evals/npo.json",
        "saliency/forget_qa/manifest.json",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    return Workspace(tmp_path, Settings())


def test_a_name_that_several_kinds_have(workspace: Workspace) -> None:
    found = find(workspace, "npo")
    assert (found.kind, found.path) == ("mask", workspace.mask_path("npo"))
    assert found.also == ("models/npo", "evals/npo")


@pytest.mark.parametrize(("kind", "room"), [("mask", "masks"), ("model", "models"), ("eval", "evals")])
def test_the_room_tells_them_apart(workspace: Workspace, kind: str, room: str) -> None:
    found = find(workspace, f"{room}/npo")
    assert (found.kind, found.name, found.also) == (kind, "npo", ())


def test_only_the_kinds_that_are_wanted(workspace: Workspace) -> None:
    assert find(workspace, "npo", ("patch", "model")).kind == "model"
    with pytest.raises(MissingArtifact, match=r"no artifact 'evals/npo'.*there is: forget_qa, npo"):
        find(workspace, "evals/npo", EXCHANGED)
    with pytest.raises(UsageError, match="is no mask but a model"):
        find(workspace, str(workspace.model_dir("npo")), ("mask",), called="mask")


def test_a_path_needs_no_workspace(workspace: Workspace) -> None:
    def closed() -> Workspace:
        raise AssertionError("opened")

    assert find(closed, str(workspace.path("saliency", "forget_qa"))).kind == "saliency"
    with pytest.raises(MissingArtifact, match="does not exist"):
        find(closed, str(workspace.path("masks", "no.safetensors")))


@pytest.mark.parametrize("text", ["", " "])
def test_nothing_is_named(workspace: Workspace, text: str) -> None:
    with pytest.raises(UsageError, match="no artifact is named"):
        find(workspace, text)
