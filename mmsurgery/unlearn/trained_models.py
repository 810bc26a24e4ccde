"""Models that a recipe trained here, held against the data and the base as they are now."""

from __future__ import annotations

from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, model_config
from mmsurgery.artifacts.files import read_json
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import benchmark, source_of, training_parts
from mmsurgery.errors import Mismatch, MissingArtifact, MmsurgeryError
from mmsurgery.masks.stale import part_sha256
from mmsurgery.recipes import shipped_recipes
from mmsurgery.unlearn.interrupted import train_command
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.tuning import START
from mmsurgery.workspace import Workspace

AIMS = ("gold", "reference")
"""Models of only a part of the people: a changed split makes other models of them. Vanilla learnt everybody."""


def check_trained(workspace: Workspace, *models: str) -> None:
    """Check that those of `AIMS` which are named, if a recipe trained them here, are of the data and the base that
    the workspace has now; others are left alone.

    Raises:
        InputRefused: if a run record was changed, or base or data are broken.
        Mismatch: naming the first model that is not, and of what it is.
    """
    for model in models:
        if model in AIMS:
            _check(workspace, model)


def stale_models(workspace: Workspace) -> list[MmsurgeryError]:
    """Which models that were trained here are of other data or of another base than the workspace has now, and what
    cannot be read for this. Of vanilla only the base counts."""
    found: list[MmsurgeryError] = []
    for model in ("vanilla", *AIMS):
        try:
            _check(workspace, model)
        except MmsurgeryError as problem:
            found.append(problem)
    return found


def _check(workspace: Workspace, model: str) -> None:
    record = _record(workspace, model)
    if record is None:
        return
    again = train_command(model, _recipe(workspace, record), force=True)
    there = record["provenance"]["inputs"]
    base = _base_sha256(workspace)
    if base is not None and there.get("start") != base:
        what = f"from base {str(there.get('start'))[:12]}, models.base is {base[:12]} now"
        raise Mismatch(f"model '{model}' was trained {what}", again)
    if model not in AIMS:
        return
    source, parts = training_parts(benchmark(workspace.settings.benchmark.name), source_of(workspace), model)
    here = {part: part_sha256(workspace, part, source=source, remembered=True) for part in parts}
    learnt = {part: there.get(part) for part in {*here, *_parts(record)}}
    if other := sorted(part for part, digest in learnt.items() if digest != here.get(part)):
        raise Mismatch(
            f"model '{model}' was trained on other data than the workspace has now: {', '.join(other)}", again
        )


def _recipe(workspace: Workspace, record: dict[str, Any]) -> str | None:
    """How to name the recipe of a record: of a file only its name is known."""
    name = str(record["recipe"].get("name"))
    if name == f"{workspace.settings.benchmark.name}.{record['model_type']}":
        return None
    return name if name in shipped_recipes() else f"{name}.toml"


def _parts(record: dict[str, Any]) -> list[str]:
    parts = record["provenance"]["settings"].get("parts")
    return [str(part) for part in parts] if isinstance(parts, list) else []


def _record(workspace: Workspace, model: str) -> dict[str, Any] | None:
    """The record of a model that a recipe trained in this workspace; None for any other model, or where it is not."""
    folder = workspace.model_dir(model)
    if folder.parent != workspace.path("models") or not (folder / RUN_FILE).is_file():
        return None
    value = read_json(folder / RUN_FILE)
    made_here = isinstance(value, dict) and isinstance(value.get("recipe"), dict)
    return read_record(folder) if made_here else None


def _base_sha256(workspace: Workspace) -> str | None:
    """Digest of the base's weights; None where there is no base."""
    try:
        folder = workspace.existing_model(START)
    except MissingArtifact:
        return None
    return CheckpointFiles(folder, backbone(model_config(folder)["model_type"]).canonical).digest()
