"""Weights that come with the package are what the default training would give, and are what is unpacked."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsurgery.artifacts.checkpoint import RUN_FILE, SINGLE, CheckpointFiles
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import load
from mmsurgery.portraits import shipped, training
from mmsurgery.portraits.prepare import prepare_model
from mmsurgery.portraits.world import World
from mmsurgery.settings import ModelSettings, Settings
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Workspace

SHIPPED = sorted(folder.name for folder in shipped.WEIGHTS.iterdir())
MODELS = ("base", "vanilla", "gold")


@pytest.fixture
def untrained(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where anything is trained."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained instead of unpacked")

    monkeypatch.setattr(training, "World", lambda seed: world)
    monkeypatch.setattr(training, "finetune", refuse)


def test_both_families_are_shipped() -> None:
    assert SHIPPED == ["llava", "qwen2_vl"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("family", SHIPPED)
def test_default_models_are_unpacked(tmp_path: Path, family: str) -> None:
    ws = Workspace(tmp_path, Settings(models=ModelSettings(backbone=family)))
    for name in ("vanilla", "gold"):  # the base comes with the first
        prepare_model(ws, name)
    for name in MODELS:
        folder, source = ws.model_dir(name), shipped.WEIGHTS / family / name
        assert (folder / SINGLE).read_bytes() == (source / SINGLE).read_bytes()
        digest = CheckpointFiles(folder, backbone(family).canonical).digest()
        assert digest == read_record(source)["model_sha256"] == load(folder).model_sha256
        assert training.train(ws, name).up_to_date if name != "base" else training.train_base(ws).up_to_date
    assert {path.name for path in (shipped.WEIGHTS / family / "base").iterdir()} == {RUN_FILE, SINGLE}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("changed", [{"seed": 1}, {"setting": "fragile"}])
def test_another_recipe_is_not_unpacked(tmp_path: Path, changed: dict[str, str | int]) -> None:
    ws = Workspace(tmp_path, Settings(models=ModelSettings(backbone="llava", **changed)))
    with pytest.raises(AssertionError, match="trained instead of unpacked"):
        prepare_model(ws, "vanilla")
