"""Which settings a model of the embedded benchmark was made for, held against those of the workspace."""

from __future__ import annotations

from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.errors import Mismatch
from mmsurgery.settings import Settings
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Workspace

_MODELS = ("base", "vanilla", "gold", "reference")


def made_for(settings: Settings, model: str) -> dict[str, Any]:
    """The settings that decide what `base`, `vanilla`, `gold` or `reference` is; part of its run record."""
    benchmark, models = settings.benchmark, settings.models
    found = {"models.backbone": models.backbone, "models.seed": models.seed, "benchmark.world": benchmark.world}
    if model != "base":
        found["models.setting"] = models.setting
    if model in ("gold", "reference"):
        found |= {"benchmark.forget": benchmark.forget, "benchmark.draw": benchmark.draw}
    return found


def check_made_for(workspace: Workspace, model: str) -> None:
    """Check that a model, if we trained it in this workspace, was trained for the settings as they are now.

    Raises:
        InputRefused: if its run record was changed.
        Mismatch: naming a setting that was changed since.
    """
    folder = workspace.model_dir(model)
    ours = model in _MODELS and folder.parent == workspace.path("models") and (folder / RUN_FILE).exists()
    if workspace.settings.benchmark.name != "portraits" or not ours:
        return
    there = read_record(folder).get("made_for") or {}
    for key, here in made_for(workspace.settings, model).items():
        if there.get(key, here) != here:
            raise Mismatch(
                f"model '{model}' was made for {key} = {there[key]}, the settings say {here}",
                f"mmsurgery train {'vanilla' if model == 'base' else model} --force, or set {key} = {there[key]}",
            )
