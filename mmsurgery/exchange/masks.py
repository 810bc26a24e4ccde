"""`import` of masks: official `.pt` files become `masks/NAME.safetensors`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.artifacts.files import regular_file
from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import Mismatch, UnusableData
from mmsurgery.exchange.official import read_official
from mmsurgery.names import Selector, check_artifact_name
from mmsurgery.provenance import differences, provenance, sha256_file
from mmsurgery.workspace import SILENT, Progress, Workspace


@dataclass(frozen=True)
class MaskImport:
    """What `import_mask` made or found."""

    name: str
    path: Path
    mask: Mask = field(repr=False)
    up_to_date: bool


def import_mask(
    workspace: Workspace,
    files: Sequence[Path],
    *,
    name: str,
    modules: str | None = None,
    absent: str = "freeze",
    force: bool = False,
    progress: Progress = SILENT,
) -> MaskImport:
    """Make `masks/NAME.safetensors` of official mask files, united, for the vanilla model.

    Args:
        modules: keep what is inside these; by default the groups that the files name.
        absent: `freeze`, or `update` as the official trainer does with parameters that no file names.

    Raises:
        UsageError: for a wrong argument; MissingArtifact: if a file or the vanilla model does not exist.
        InputRefused: if a file is damaged, would run code or holds other values than 0 and 1.
        Mismatch: if it is of another model, or another mask has the name.
        UnusableData: if nothing is selected.
    """
    path = workspace.mask_path(check_artifact_name(name))
    settings = {"absent": absent, "modules": None if modules is None else str(Selector(modules)), "format": "official"}
    vanilla = workspace.existing_model("vanilla")
    family = backbone(model_config(vanilla)["model_type"])
    start = CheckpointFiles(vanilla, family.canonical)
    digests = [_digest(file) for file in files]
    origin = provenance("import", settings, {"files": digests, "model_sha256": start.digest()})
    with workspace.lock():
        if path.exists() and not force:
            there = Mask.load(path)
            if there.provenance.get("key") != origin["key"]:
                other = "rule" if there.rule != "imported" else differences(there.provenance, origin)
                raise Mismatch(f"mask '{name}' exists, made with other {other}", "pass --force, or another --name")
            return MaskImport(name, path, there, True)
        mask = read_official(files, start, family, absent=absent, progress=progress)
        counts = {"absent": mask.counts["absent"]}
        mask = mask if modules is None else mask.restrict(modules)
        if not mask.selected:
            raise UnusableData(
                f"the mask selects 0 of {mask.total:,} weights", "name other --modules, or check the file"
            )
        parents = tuple({"kind": "file", "format": "official", "sha256": digest} for digest in digests)
        counts |= {"selected": mask.selected, "total": mask.total}
        mask = replace(mask, parents=parents, counts=counts, provenance=origin)
        mask.write(path)
        workspace.journal("import", mask=name, selected=mask.selected, total=mask.total)
    return MaskImport(name, path, mask, False)


def _digest(file: Path) -> str:
    regular_file(file)
    return sha256_file(file)
