"""`patch apply` and `patch revert`: one side of a patch made of the other, proved by digest before it appears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.files import atomic_folder, write_json
from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UsageError, nearest
from mmsurgery.names import check_artifact_name
from mmsurgery.paths import home_expanded, real
from mmsurgery.provenance import seal
from mmsurgery.unlearn.request import TRAINED
from mmsurgery.unlearn.save import check_space, rewrite
from mmsurgery.workspace import SILENT, Progress, Workspace


@dataclass(frozen=True)
class Patched:
    """A model made by a patch."""

    model: str
    path: Path
    patch: str
    source: str
    """The model it was made of."""
    model_sha256: str
    changed: int
    """Weights that the patch changed."""
    up_to_date: bool


def apply(
    workspace: Workspace,
    patch: str,
    *,
    to: str | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Patched:
    """Make `models/NAME` equal to the patch's after, of the model it calls before.

    Weights are equal bit for bit, in the files and layout of the model the patch is applied to; configuration
    and processor are that model's, which has the same; the run record is after's.

    Args:
        patch: name or path.
        to: model name or path; where None the patch's before, else vanilla.
        name: of the model; after's where None.
        force: make it again, and replace another model of the name.

    Raises:
        MissingArtifact: if patch or model do not exist.
        UsageError: if the model's name leads out of the workspace.
        InputRefused: if a file is damaged.
        Mismatch: if the patch belongs to another model, or another model has the name.
        MachineFault: if the disk is too small or the workspace is in use.
    """
    return _turn(workspace, patch, ("before", "after"), to, name, force, progress)


def revert(
    workspace: Workspace,
    patch: str,
    *,
    start: str | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Patched:
    """Make `models/NAME` equal to the patch's before, of the model it calls after; else as `apply`.

    Args:
        start: model name or path; the patch's after where None.
        name: of the model; before's where None.
    """
    return _turn(workspace, patch, ("after", "before"), start, name, force, progress)


def find_patch(workspace: Workspace, text: str) -> Path:
    """The file of a patch given by name or path.

    Raises:
        MissingArtifact: if there is none.
    """
    if "/" in text or text.endswith(".safetensors"):
        return home_expanded(text)
    known = workspace.patches()
    if text not in known:
        guess = nearest(text, known)
        raise MissingArtifact(
            f"no patch '{text}' in {workspace.root}",
            f"did you mean '{guess}'?" if guess else "mmsurgery patch create MODEL",
        )
    return workspace.patch_path(text)


def _turn(
    workspace: Workspace,
    text: str,
    direction: tuple[str, str],
    source: str | None,
    name: str | None,
    force: bool,
    progress: Progress,
) -> Patched:
    patch = Patch.load(find_patch(workspace, text))
    here, there = (getattr(patch, side) for side in direction)
    known = here["model"] in workspace.models() or direction[0] == "after"
    source_name, folder = workspace.find_model(source or (here["model"] if known else "vanilla"))
    target = check_artifact_name(name or there["model"])
    path = workspace.model_dir(target)
    with workspace.lock():
        if source is not None:
            _source(folder, source_name, patch, here, direction[0])
        result = Patched(
            model=target,
            path=path,
            patch=patch.path.stem,
            source=source_name,
            model_sha256=there["model_sha256"],
            changed=patch.sizes["changed"],
            up_to_date=True,
        )
        if path.exists() and not force:
            _check_existing(path, target, patch, there)
            return result
        if target in TRAINED and path.exists():
            raise UsageError(f"model '{target}' is trained, a patch does not replace it", "choose another --name")
        if real(path).parent != real(workspace.path("models")):
            raise UsageError(f"model '{target}' is kept outside {workspace.root}", "give it another --name")
        start = _source(folder, source_name, patch, here, direction[0])
        check_space(start, path.parent)
        _make(path, target, start, patch, there, force, progress)
        workspace.journal(f"patch {'apply' if direction[1] == 'after' else 'revert'}", model=target, patch=result.patch)
    return Patched(**{**vars(result), "up_to_date": False})


def _source(folder: Path, name: str, patch: Patch, here: Mapping[str, Any], side: str) -> CheckpointFiles:
    """The files of the model to be changed, proved to be the one the patch calls `side`."""
    model_type = model_config(folder)["model_type"]
    if model_type != here["model_type"]:
        raise Mismatch(
            f"patch '{patch.path.stem}' is for {here['model_type']}, '{name}' is {model_type}",
            "name a model that the patch was made for",
        )
    files = CheckpointFiles(folder, backbone(model_type).canonical)
    if (found := files.digest()) != here["model_sha256"]:
        raise Mismatch(
            f"patch '{patch.path.stem}' belongs to weights {here['model_sha256'][:12]} ('{here['model']}'), "
            f"'{name}' has {found[:12]}",
            f"name the model that is its {side}: {'--to' if side == 'before' else '--from'} MODEL",
        )
    if companions_sha256(folder) != patch.companions_sha256:
        raise Mismatch(
            f"configuration or processor of '{name}' are not those that patch '{patch.path.stem}' was made with",
            "copy the files of the model that the patch was made with",
        )
    return files


def _make(
    path: Path,
    name: str,
    start: CheckpointFiles,
    patch: Patch,
    there: Mapping[str, Any],
    force: bool,
    progress: Progress,
) -> None:
    family = backbone(start.model_type)
    with progress.stage("patching weights", len(patch.names)) as advance, atomic_folder(path, replace=force) as new:

        def turned(name: str, array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
            advance(1)
            return patch.turned(name, array)

        rewrite(new, start, family, {each: partial(turned, each) for each in patch.names})
        if CheckpointFiles(new, family.canonical).digest() != there["model_sha256"]:
            raise InputRefused(
                f"patch '{patch.path.stem}' does not give the weights {there['model_sha256'][:12]} that it promises",
                "make or copy it again",
            )
        if (record := there["record"]) is not None:
            write_json(new / RUN_FILE, record if record.get("model") == name else seal({**record, "model": name}))
            CheckpointFiles(new, family.canonical).digest()  # refuses a record of other weights
    Snapshots.discard_of(path)


def _check_existing(path: Path, name: str, patch: Patch, there: Mapping[str, Any]) -> None:
    model_type = model_config(path)["model_type"]
    same = model_type == there["model_type"] and companions_sha256(path) == patch.companions_sha256
    if not same or CheckpointFiles(path, backbone(model_type).canonical).digest() != there["model_sha256"]:
        raise Mismatch(f"model '{name}' exists, with other weights", "pass --force, or another --name")
