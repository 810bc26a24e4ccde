"""`diff`: where two models of a workspace differ most, as record and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, model_config
from mmsurgery.artifacts.files import atomic_files, read_json
from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.discovery import backbone
from mmsurgery.diff.difference import LISTED, TOP, compare, heatmaps, relative_heatmaps
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact
from mmsurgery.provenance import SCHEMA, canonical_json, check_seal, differences, provenance, seal
from mmsurgery.unlearn.record import mask_identity, read_record
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.figures.heatmap import Heatmap

PICTURES = (".png", ".svg")
RELATIVE = "relative"
"""Folder in `diffs/` of the pictures of relative changes."""
_KEYS = {"before", "after", "n", "threshold", "changed", "layers", "components", "heatmap", "sizes", "top"}


@dataclass(frozen=True)
class DiffResult:
    """What `diff` wrote."""

    before: str
    after: str
    path: Path
    pictures: tuple[Path, ...]
    """Of the top n, then of the relative change where it was asked for."""
    up_to_date: bool
    record: dict[str, Any]
    """The JSON record: names, `mask`, the fields of `Difference`, provenance."""

    @property
    def changed(self) -> int:
        """Weights whose bits differ."""
        return int(self.record["changed"])

    @property
    def heatmaps(self) -> list[Heatmap]:
        """One per module group, see `difference.heatmaps`."""
        return heatmaps(self.record)

    @property
    def relative_heatmaps(self) -> list[Heatmap]:
        """One per module group, see `difference.relative_heatmaps`."""
        return relative_heatmaps(self.record)


def diff(
    workspace: Workspace,
    before: str | None = None,
    after: str | None = None,
    *,
    top: int | None = None,
    list_: int = LISTED,
    relative: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> DiffResult:
    """Compare two models and write `diffs/BEFORE..AFTER.json`, `.png` and `.svg`.

    Args:
        before: model name or path; vanilla where None.
        after: model name or path; the last applied model in the journal where None.
        top: how many of the largest differences the heatmap counts; by default as many weights as
            AFTER's mask selects, else as `masks/default` does, else 1000.
        list_: how many of the largest are listed, at most.
        relative: draw the relative change of each cell, too: `diffs/relative/BEFORE..AFTER.png` and `.svg`.
        force: compare again, and replace the diff of other models or settings.

    Raises:
        MissingArtifact: if a model does not exist, or none was applied.
        InputRefused: if a model, mask or earlier diff is damaged.
        Mismatch: if the models differ in names or shapes, the mask was changed since AFTER was made
            with it, or the name holds another diff.
        UnusableData: naming the tensor, for weights that are not finite.
    """
    old_name, old = workspace.find_model(before or "vanilla")
    new_name, new = workspace.find_model(after or workspace.last_unlearned())
    path = workspace.diff_path(old_name, new_name)
    family = backbone(model_config(old)["model_type"])
    first, second = (CheckpointFiles(folder, family.canonical) for folder in (old, new))
    mask_name, mask = mask_of(workspace, new)
    n = top if top is not None else mask.selected if mask is not None and mask.selected else TOP
    origin = provenance(
        "diff",
        {"top": n, "list": list_, "mask": mask_name},
        {
            "before": first.digest(),
            "after": second.digest(),
            "mask": None if mask is None else mask.content_sha256,
        },
    )
    pictures = tuple(path.with_suffix(suffix) for suffix in PICTURES)
    if relative:
        pictures += tuple(path.parent / RELATIVE / picture.name for picture in pictures)
    record = None if force or not path.exists() else _existing(path, origin)
    if record is not None and "relative" not in record:
        progress.note(f"{path.name} is of an earlier version, without relative changes: comparing again")
        record = None
    up_to_date = record is not None
    if record is None:
        addresses = {name: family.address(name) for name in first.names}
        found = compare(first, second, addresses, top=n, listed=list_, mask=mask, progress=progress)
        names = {"before": old_name, "after": new_name, "mask": mask_name}
        record = seal({"schema": SCHEMA, "kind": "diff", **names, **found.to_json(), "provenance": origin})
    if top is not None and record["changed"] < top:
        progress.note(f"only {record['changed']:,} weights differ: the heatmap counts all of them, not {top:,}")
    missing = [picture for picture in pictures if not up_to_date or not picture.exists()]
    if missing:
        with workspace.lock():
            # the record last: it says that everything is there
            written = missing if up_to_date else [*missing, path]
            with atomic_files(*written) as temporaries:
                for place, temporary in zip(written, temporaries, strict=True):
                    temporary.write_bytes(canonical_json(record) + b"\n" if place == path else _drawn(record, place))
            if not up_to_date:
                workspace.journal("diff", before=old_name, after=new_name)
    return DiffResult(old_name, new_name, path, pictures, up_to_date, record)


def read_diff(path: Path) -> dict[str, Any]:
    """The checked record of a diff; that of an earlier version has no `relative` and no `changed_by_group`.

    Raises:
        MissingArtifact: if it does not exist.
        InputRefused: if it is damaged.
        Mismatch: if it was written by another schema.
    """
    record = check_seal(read_json(path), str(path), kind="diff")
    if not record.keys() >= _KEYS:
        raise InputRefused(f"{path} lacks {', '.join(sorted(_KEYS - record.keys()))}", "mmsurgery diff --force")
    return record


def mask_of(workspace: Workspace, model: Path) -> tuple[str | None, Mask | None]:
    """The mask a model was made with, else `masks/default`, else none."""
    made_with, record = None, None
    if (model / RUN_FILE).exists():
        record = read_record(model)
        made_with = record.get("mask")
    name = made_with or "default"
    if not workspace.mask_path(name).exists():
        if made_with:
            raise MissingArtifact(f"mask '{name}', which {model.name} was made with, is gone", "make it again")
        return None, None
    mask = Mask.load(workspace.mask_path(name))
    if made_with and record and mask_identity(mask) != record["provenance"]["inputs"].get("mask"):
        raise Mismatch(f"mask '{name}' has changed since '{model.name}' was made with it", "apply again with --force")
    return name, mask


def _existing(path: Path, origin: dict[str, Any]) -> dict[str, Any]:
    record = read_diff(path)
    if record["provenance"].get("key") == origin["key"]:
        return record
    other = differences(record["provenance"], origin)
    raise Mismatch(f"{path} is a diff with other inputs ({other})", "pass --force to replace it")


def _drawn(record: dict[str, Any], picture: Path) -> bytes:
    from mmsurgery.figures.heatmap import render

    found = relative_heatmaps(record) if picture.parent.name == RELATIVE else heatmaps(record)
    return render(found, picture.suffix.removeprefix("."))
