"""`export`: an artifact in a format of others; one table says which formats there are."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import given_path, put, temporary_folder
from mmsurgery.artifacts.find import EXPORTED, ROOMS, Found, find
from mmsurgery.errors import Mismatch, UsageError, unknown
from mmsurgery.paths import real
from mmsurgery.provenance import sha256_file, sha256_json
from mmsurgery.settings import SETTINGS_FILE
from mmsurgery.workspace import SILENT, Progress, Workspace

Writer = Callable[[Workspace, Found, Path, Progress], dict[str, Any]]
"""Writes an artifact to a path, which does not exist, and says what is to be said about it."""


@dataclass(frozen=True)
class Format:
    """How artifacts are exported."""

    title: str
    kinds: tuple[str, ...]
    """Of what, see `find.KINDS`."""
    suffix: str
    """Of the file; empty for a folder."""
    writer: str
    """`module:function`, a `Writer`, imported when it is used."""


KEPT = frozenset((*ROOMS.values(), "audits", "references", "journal.jsonl", SETTINGS_FILE))
"""What of a workspace nothing is exported into."""
FORMATS = {
    "official": Format(
        "mask file of the official MMUnlearner code", ("mask",), ".pt", "mmsurgery.exchange.export:_official"
    ),
    "numpy": Format("NumPy archive of arrays", ("mask", "saliency"), ".npz", "mmsurgery.exchange.export:_numpy"),
    "shira": Format("PEFT SHiRA adapter", ("model", "patch", "mask"), "", "mmsurgery.exchange.export:_shira"),
    "lm-eval": Format(
        "results and samples of lm-evaluation-harness",
        ("eval", "record"),
        ".lm-eval",
        "mmsurgery.exchange.lm_eval:write_lm_eval",
    ),
}


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote or found."""

    name: str
    kind: str
    format: str
    path: Path
    bytes: int
    up_to_date: bool
    """Whether the same bytes were there already."""
    details: dict[str, Any]


def export(
    workspace: Workspace,
    artifact: str,
    *,
    format: str,
    out: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Write an artifact in a format of others, `exports/NAME.SUFFIX` unless told otherwise.

    Args:
        artifact: name or path.
        format: a key of `FORMATS`.
        force: replace other bytes under that path.

    Raises:
        UsageError: for an unknown format, one that does not suit the artifact, or a folder that is not there.
        MissingArtifact: if there is no such artifact.
        InputRefused: if it is damaged.
        Mismatch: if something else lies under the path.
        MachineFault: if it cannot be written.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    chosen, found = FORMATS[format], find(workspace, artifact, EXPORTED, called="mask, saliency, patch, model or eval")
    rooms = {ROOMS[kind] for kind in chosen.kinds if kind in ROOMS}
    others = [other for other in found.also if other.partition("/")[0] in rooms]
    if found.kind not in chosen.kinds:
        suits = [name for name, each in FORMATS.items() if found.kind in each.kinds]
        hint = f"its formats: {', '.join(suits)}" if suits else "a model is a Hugging Face folder as it is"
        article = "an" if found.kind == "eval" else "a"
        raise UsageError(
            f"format '{format}' is for {' and '.join(chosen.kinds)}, '{artifact}' is {article} {found.kind}",
            f"name {' or '.join(others)}" if others else hint,
        )
    if others:
        progress.note(f"this is the {found.kind}; of the same name are {', '.join(others)}")
    path = (
        workspace.path("exports", found.name.replace("/", ".") + chosen.suffix)
        if out is None
        else given_path(Path(out))
    )
    if out is not None and (inside := _inside(workspace, path)) is not None:
        raise UsageError(f"{path} is where the workspace keeps its {inside}", "name a file elsewhere")
    with workspace.lock():
        up_to_date, details = _write(chosen, workspace, found, path, force, progress)
        if not up_to_date:
            workspace.journal("export", artifact=found.name, kind=found.kind, format=format)
    return ExportResult(found.name, found.kind, format, path, sum(map(_size, _files(path))), up_to_date, details)


def _inside(workspace: Workspace, path: Path) -> str | None:
    """What of the workspace a path is part of; None for what is only beside its artifacts."""
    place, root = real(path), real(workspace.root)
    first = place.relative_to(root).parts[0] if place != root and place.is_relative_to(root) else ""
    if place.is_relative_to(real(workspace.data_dir)):
        return "data"
    return first if first in KEPT else None


def _write(
    chosen: Format, workspace: Workspace, found: Found, path: Path, force: bool, progress: Progress
) -> tuple[bool, dict[str, Any]]:
    """Write beside the path first: what lies there already is told apart by its bytes."""
    module, _, function = chosen.writer.partition(":")
    writer: Writer = getattr(importlib.import_module(module), function)
    with temporary_folder(path) as beside:
        made = Path(beside, path.name)
        details = writer(workspace, found, made, progress)
        if path.exists():
            if _digest(path) == _digest(made):
                return True, details
            if not force:
                raise Mismatch(f"{path} exists, with other content", "pass --force to replace it, or another --out")
        put(made, path)
    return False, details


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> str:
    return sha256_json([[str(file.relative_to(path)), sha256_file(file)] for file in _files(path)])


def _official(workspace: Workspace, found: Found, path: Path, progress: Progress) -> dict[str, Any]:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.backbones.discovery import backbone
    from mmsurgery.exchange.official import write_official

    mask = Mask.load(found.path)
    write_official(mask, path, backbone(mask.base["model_type"]).published)
    frozen = len(mask) - len(mask.in_modules())
    progress.note(
        f"all {len(mask)} parameters are in it, {frozen} of them frozen: all false; "
        "each under its name in memory of transformers 5 and of releases before 4.52"
    )
    return {"selected": mask.selected, "total": mask.total}


def _numpy(workspace: Workspace, found: Found, path: Path, progress: Progress) -> dict[str, Any]:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.artifacts.saliency_map import SaliencyMap
    from mmsurgery.exchange import arrays

    if found.kind == "mask":
        mask = Mask.load(found.path)
        arrays.write_mask(mask, path)
        return {"arrays": len(mask), "selected": mask.selected, "total": mask.total}
    saliency = SaliencyMap.load(found.path)
    arrays.write_saliency(saliency, path)
    return {"arrays": len(saliency.arrays), "units": saliency.units}


def _shira(workspace: Workspace, found: Found, path: Path, progress: Progress) -> dict[str, Any]:
    from mmsurgery.exchange.shira import export_shira

    result = export_shira(workspace, str(found.path.absolute()), path, progress=progress)
    return {key: value for key, value in dataclasses.asdict(result).items() if key != "path"}
