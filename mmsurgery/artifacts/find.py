"""An artifact by name in the workspace or by path: the one way in which every verb finds what it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.artifacts.patch import is_patch
from mmsurgery.artifacts.saliency_map import MANIFEST
from mmsurgery.errors import MissingArtifact, UsageError, nearest
from mmsurgery.paths import home_expanded, real
from mmsurgery.workspace import Workspace

ROOMS = {
    "mask": "masks",
    "saliency": "saliency",
    "patch": "patches",
    "model": "models",
    "eval": "evals",
    "diff": "diffs",
    "stability": "stability",
    "request": "requests",
    "experiment": "experiments",
}
"""Kind of artifact -> its folder in a workspace, in the order in which a name is looked up."""
EXCHANGED = ("mask", "saliency", "patch", "model")
"""What others can have, as files that both sides read."""
EXPORTED = (*EXCHANGED, "eval", "record")
"""What some format of others can hold."""


@dataclass(frozen=True)
class Found:
    """An artifact as it lies there, not yet read."""

    kind: str
    """One of `ROOMS`; for a path also `record` (a JSON file) or nothing (unknown)."""
    name: str
    """Of an eval with its folders, as `official/NAME`."""
    path: Path
    also: tuple[str, ...] = ()
    """What else in the workspace has that name, as `masks/default`: how it is named instead."""


def find(
    workspace: Workspace | Callable[[], Workspace],
    text: str,
    kinds: Collection[str] = tuple(ROOMS),
    *,
    called: str = "artifact",
) -> Found:
    """The artifact of a path, of a name in the workspace, or of `masks/NAME` where kinds share a name.

    Args:
        workspace: or what opens it, which is done only for a name.
        kinds: what it may be.
        called: what they are together, for messages.

    Raises:
        MissingArtifact: if there is none, with the nearest name.
        UsageError: if a path leads to something else; where every kind will do, to nothing at all.
    """
    if not text.strip():
        raise UsageError(f"no {called} is named", "see mmsurgery status for what there is")
    path = home_expanded(text)
    given = path.exists() and (
        "/" in text or path.is_file() or _kind(path) != ""
    )  # a name may be that of some folder here, too
    if given or path.is_absolute() or text.startswith((".", "~")):
        return _by_path(path, kinds, called)
    here = workspace() if callable(workspace) else workspace
    places = list(_places(here, kinds))
    found = [each for each in places if text in (each.name, f"{ROOMS[each.kind]}/{each.name}")]
    if found:
        also = tuple(f"{ROOMS[each.kind]}/{each.name}" for each in found[1:])
        return Found(found[0].kind, found[0].name, found[0].path, also)
    if path.exists():
        return _by_path(path, kinds, called)
    names = sorted({each.name for each in places})
    guess = nearest(text, names)
    hint = f"did you mean '{guess}'? " if guess else ""
    raise MissingArtifact(
        f"no {called} '{text}' in {here.root}", f"{hint}there is: {', '.join(names[:20]) or 'nothing yet'}"
    )


def _places(workspace: Workspace, kinds: Collection[str]) -> Iterator[Found]:
    """What the workspace holds of these kinds, in the order of `ROOMS`."""
    named = {
        "mask": {name: workspace.mask_path(name) for name in workspace.masks()},
        "saliency": {p.parent.name: p.parent for p in workspace.path("saliency").glob(f"[!.]*/{MANIFEST}")},
        "patch": {name: workspace.patch_path(name) for name in workspace.patches()},
        "model": {name: workspace.model_dir(name) for name in workspace.models()},
        "eval": _evals(workspace.path("evals")),
        "experiment": {p.parent.name: p for p in workspace.path("experiments").glob("[!.]*/results.json")},
    }
    for kind, room in ROOMS.items():
        if kind in kinds:
            paths = named.get(kind) or {p.stem: p for p in workspace.path(room).glob("[!.]*.json")}
            yield from (Found(kind, name, path) for name, path in sorted(paths.items()))


def _evals(room: Path) -> dict[str, Path]:
    """`official/NAME` -> path, of every protocol, subset and request."""
    inside = {path.relative_to(room).with_suffix(""): path for path in room.rglob("*.json")}
    return {name.as_posix(): path for name, path in inside.items() if not any(p.startswith(".") for p in name.parts)}


def _by_path(path: Path, kinds: Collection[str], called: str) -> Found:
    if not path.exists():
        raise MissingArtifact(f"{path} does not exist", f"name one that does: mmsurgery status lists each {called}")
    kind = _kind(path)
    if kind not in kinds and len(kinds) < len(ROOMS):
        raise UsageError(f"{path} is no {called}" + (f" but a {kind}" if kind else ""), f"name a {called}")
    return Found(kind, real(path).name.removesuffix(".safetensors").removesuffix(".json"), path)


def _kind(path: Path) -> str:
    """What a path is, by what it holds."""
    if path.is_dir():
        signs = {MANIFEST: "saliency", "config.json": "model", RUN_FILE: "model", "results.json": "experiment"}
        return next((kind for file, kind in signs.items() if (path / file).exists()), "")
    if path.suffix == ".json":
        return "record"
    if path.suffix != ".safetensors":
        return ""
    return "patch" if is_patch(path) else "mask"
