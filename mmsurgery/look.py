"""`inspect`: find an artifact by name or path, describe it, draw its heatmap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.files import given_path
from mmsurgery.artifacts.mask import Mask
from mmsurgery.errors import MissingArtifact, UsageError, nearest
from mmsurgery.masks.inspect import describe, mask_heatmaps

if TYPE_CHECKING:
    from mmsurgery.figures.heatmap import Heatmap
    from mmsurgery.workspace import Workspace


@dataclass(frozen=True)
class Inspection:
    path: Path
    description: dict[str, Any]
    heatmaps: list[Heatmap]


def inspect(
    workspace: Callable[[], Workspace], artifact: str, *, other: str | None = None, png: str | None = None
) -> Inspection:
    """Describe an artifact.

    Args:
        workspace: gives the workspace; called only where `artifact` is a name, not a path.
        artifact: a mask, saliency folder, model, eval or diff, by name or path.
        other: another mask, for the overlap.
        png: where to write the heatmap (masks only).

    Raises:
        MissingArtifact: if nothing has that name.
        UsageError: if a heatmap or overlap is asked of something that has none, or there is no folder
            for the picture.
    """
    picture = None if png is None else given_path(Path(png))
    path = find(workspace, artifact)
    description = describe(path, other=find(workspace, other) if other else None)
    heatmaps: list[Heatmap] = []
    if description["kind"] == "mask":
        heatmaps = mask_heatmaps(Mask.load(path))
    if picture is not None:
        if not heatmaps:
            raise UsageError(f"{description['kind']} '{artifact}' has no heatmap", "name a mask")
        from mmsurgery.figures.heatmap import draw

        draw(heatmaps, picture)
    return Inspection(path, description, heatmaps)


def find(workspace: Callable[[], Workspace], artifact: str) -> Path:
    """The path of an artifact named by path, or by name in the workspace (masks first)."""
    if "/" in artifact or Path(artifact).exists():
        path = Path(artifact)
        if not path.exists():
            raise MissingArtifact(f"{path} does not exist")
        return path
    here = workspace()
    places = {
        **{p.stem: p for p in here.path("diffs").glob("[!.]*.json")},
        **{p.stem: p for p in here.path("evals").glob("[!.]*.json")},
        **{name: here.model_dir(name) for name in here.models()},
        **{p.parent.name: p.parent for p in here.path("saliency").glob("[!.]*/manifest.json")},
        **{name: here.mask_path(name) for name in here.masks()},
    }
    if artifact not in places:
        guess = nearest(artifact, places)
        known = ", ".join(sorted(places)[:20]) or "nothing yet"
        hint = f"did you mean '{guess}'? " if guess else ""
        raise MissingArtifact(f"no artifact '{artifact}' in {here.root}", f"{hint}there is: {known}")
    return places[artifact]
