"""What is to be exchanged, found by name in the workspace or by path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.artifacts.saliency_map import MANIFEST
from mmsurgery.artifacts.tensors import read_header
from mmsurgery.errors import MissingArtifact, UsageError, nearest
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import parse_json
from mmsurgery.workspace import Workspace

KINDS = ("mask", "saliency", "patch", "model")


@dataclass(frozen=True)
class Found:
    """An artifact as it lies there, not yet read."""

    kind: str
    """One of `KINDS`."""
    name: str
    path: Path


def find(workspace: Workspace, text: str) -> Found:
    """The artifact of a path, or of a name in the workspace: masks first, then saliency, patches, models.

    Raises:
        MissingArtifact: if there is none, with the nearest name.
        UsageError: if a path leads to something else, or its name cannot name an artifact.
        InputRefused: if a file cannot be read.
    """
    if "/" in text or text.endswith(".safetensors"):
        return _by_path(Path(text).expanduser())
    places: dict[str, Found] = {}
    for kind, paths in _places(workspace):
        for path in paths:
            name = path.name.removesuffix(".safetensors")
            places.setdefault(name, Found(kind, name, path))
    for model in workspace.models():
        places.setdefault(model, Found("model", model, workspace.model_dir(model)))
    if text not in places:
        guess = nearest(text, places)
        known = ", ".join(sorted(places)[:20]) or "nothing yet"
        hint = f"did you mean '{guess}'? " if guess else ""
        raise MissingArtifact(f"no artifact '{text}' in {workspace.root}", f"{hint}there is: {known}")
    return places[text]


def _places(workspace: Workspace) -> Iterable[tuple[str, list[Path]]]:
    yield "mask", sorted(workspace.path("masks").glob("[!.]*.safetensors"))
    yield "saliency", sorted(p.parent for p in workspace.path("saliency").glob(f"[!.]*/{MANIFEST}"))
    yield "patch", sorted(workspace.path("patches").glob("[!.]*.safetensors"))


def _by_path(path: Path) -> Found:
    if not path.exists():
        raise MissingArtifact(f"{path} does not exist")
    name = check_artifact_name(path.resolve().name.removesuffix(".safetensors"))
    if path.is_file():
        return Found(file_kind(path), name, path)
    if (path / MANIFEST).exists():
        return Found("saliency", name, path)
    if (path / "config.json").exists() or (path / RUN_FILE).exists():
        return Found("model", name, path)
    raise UsageError(f"{path} is no mask, saliency folder, patch or model", "name one of them")


def file_kind(path: Path) -> str:
    """What a safetensors file says it is: `mask` or `patch`.

    Raises:
        MissingArtifact, InputRefused: as `tensors.read_header`.
        UsageError: if it is neither.
    """
    text = read_header(path).metadata.get("mmsurgery")
    value = parse_json(text.encode(), f"metadata of {path}") if text is not None else None
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in ("mask", "patch"):
        raise UsageError(f"{path} is neither a mask nor a patch of mmsurgery", "name a mask, saliency folder or patch")
    return str(kind)
