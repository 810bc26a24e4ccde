"""`patch create`: the difference of two models of a workspace as one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.files import check_space
from mmsurgery.artifacts.patch import Patch
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import Mismatch, UnusableData, UsageError
from mmsurgery.names import check_artifact_name
from mmsurgery.paths import real
from mmsurgery.provenance import differences, provenance
from mmsurgery.unlearn.record import SCRATCH, read_record
from mmsurgery.unlearn.verify import check_same_layout
from mmsurgery.workspace import SILENT, Progress, Workspace


@dataclass(frozen=True)
class PatchResult:
    """A patch of the workspace."""

    name: str
    path: Path
    before: str
    after: str
    up_to_date: bool
    bytes: int
    """Size of the file."""
    checkpoint_bytes: int
    """Bytes of the model's tensors."""
    share: float
    """`bytes / checkpoint_bytes`."""
    changed: int
    """Weights whose bits differ."""
    total: int
    density: float
    """`changed / total`."""
    patch: Patch = field(repr=False)


def create(
    workspace: Workspace,
    after: str | None = None,
    *,
    before: str | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> PatchResult:
    """Write `patches/NAME.safetensors`, which makes AFTER of BEFORE and BEFORE of AFTER, bit for bit.

    Args:
        after: model name or path; the last unlearned model in the journal where None.
        before: model name or path; where None the model that AFTER's record names as its start, else vanilla.
        name: of the patch; AFTER's where None.
        force: make it again, and replace another patch of the name.

    Raises:
        MissingArtifact: if a model does not exist.
        UsageError: if both are the same folder.
        InputRefused: if a model or an earlier patch is damaged.
        Mismatch: if the models differ in names, shapes, dtypes, configuration or processor, or another patch
            has the name.
        UnusableData: if their weights are the same.
        MachineFault: if the disk is too small or the workspace is in use.
    """
    after_name, after_folder = workspace.find_model(after or workspace.last_unlearned())
    before_name, before_folder = workspace.find_model(before or _start(workspace, after_folder))
    if real(before_folder) == real(after_folder):
        raise UsageError(f"before and after are both '{after_name}'", "name the model it was made from: --before")
    path = workspace.patch_path(check_artifact_name(name or after_name))
    families = [model_config(folder)["model_type"] for folder in (before_folder, after_folder)]
    if families[0] != families[1]:
        raise Mismatch(
            f"'{before_name}' is a {families[0]} model, '{after_name}' a {families[1]}: they share no weights",
            "name the model that it was made from: --before",
        )
    family = backbone(families[1])
    old, new = (CheckpointFiles(folder, family.canonical) for folder in (before_folder, after_folder))
    sides = {"before": _side(before_name, old), "after": _side(after_name, new)}
    origin = provenance(
        "patch create",
        {"before": before_name, "after": after_name},
        {key: {k: v for k, v in side.items() if k != "model"} for key, side in sides.items()},
    )
    with workspace.lock():
        if path.exists() and not force:
            return _existing(path, origin)
        check_same_layout(old, new)
        companions = [companions_sha256(files.path) for files in (old, new)]
        if companions[0] != companions[1]:
            raise Mismatch(
                f"'{before_name}' and '{after_name}' differ in configuration or processor; a patch changes weights",
                "give both models the same configuration and processor files",
            )
        if sides["before"]["model_sha256"] == sides["after"]["model_sha256"]:
            raise UnusableData(
                f"'{before_name}' and '{after_name}' hold the same weights: there is nothing to patch",
                "name a model that was changed",
            )
        check_space(path.parent, 2 * sum(file.stat().st_size for file in new.files), "the patch at its largest")
        about = {**sides, "companions_sha256": companions[0], "provenance": origin}
        patch = Patch.write(path, old, new, family.address, about, progress)
        workspace.journal("patch create", name=path.stem, before=before_name, after=after_name)
    return _result(patch, up_to_date=False)


def _existing(path: Path, origin: dict[str, Any]) -> PatchResult:
    patch = Patch.load(path)
    if patch.provenance.get("key") != origin["key"]:
        other = differences(dict(patch.provenance), origin)
        raise Mismatch(f"patch '{path.stem}' exists, made with other {other}", "pass --force, or another --name")
    return _result(patch, up_to_date=True)


def _result(patch: Patch, *, up_to_date: bool) -> PatchResult:
    sizes = patch.sizes
    return PatchResult(
        name=patch.path.stem,
        path=patch.path,
        before=patch.before["model"],
        after=patch.after["model"],
        up_to_date=up_to_date,
        bytes=patch.bytes,
        checkpoint_bytes=sizes["checkpoint"],
        share=patch.bytes / sizes["checkpoint"],
        changed=sizes["changed"],
        total=sizes["total"],
        density=sizes["changed"] / sizes["total"],
        patch=patch,
    )


def _side(name: str, files: CheckpointFiles) -> dict[str, Any]:
    return {
        "model": name,
        "model_type": files.model_type,
        "model_sha256": files.digest(),
        "record": read_record(files.path) if (files.path / RUN_FILE).exists() else None,
    }


def _start(workspace: Workspace, folder: Path) -> str:
    """What a model was made from; vanilla where it does not say."""
    if (folder / RUN_FILE).exists():
        start = str(read_record(folder)["start"])
        if start != SCRATCH:
            return start
    return "vanilla"
