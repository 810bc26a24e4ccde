"""`inspect`: find an artifact by name or path, describe it, draw its heatmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery import patches
from mmsurgery.artifacts.files import given_path
from mmsurgery.artifacts.patch import is_patch as says_patch
from mmsurgery.errors import MissingArtifact, UsageError, nearest
from mmsurgery.masks import inspect as masks
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.figures.heatmap import Heatmap
    from mmsurgery.workspace import Workspace


@dataclass(frozen=True)
class Inspection:
    path: Path
    description: dict[str, Any]
    heatmaps: list[Heatmap]


def inspect(
    workspace: Callable[[], Workspace],
    artifact: str,
    *,
    others: Sequence[str] = (),
    png: str | None = None,
    html: str | None = None,
    stability: bool = False,
    progress: Progress = SILENT,
) -> Inspection:
    """Describe an artifact.

    Args:
        workspace: gives the workspace; called only where `artifact` is a name, not a path.
        artifact: a mask, patch, saliency folder, model, eval or diff, by name or path.
        others: further masks, for the overlap of each with the first.
        png: where to write the heatmap.
        html: where to write the description as one offline page.
        stability: also rebuild the mask under other measurements, see `mmsurgery.stability`.

    Raises:
        MissingArtifact: if nothing has that name.
        UsageError: if a heatmap, overlap or stability is asked of something that has none, or there is no folder
            for picture or page.
    """
    picture, page = (None if name is None else given_path(Path(name)) for name in (png, html))
    path = find(workspace, artifact)
    found = [find(workspace, other) for other in others]
    for each in (path, *found) if others or stability else ():
        if not is_mask(each):
            why = "has overlaps" if others else "has a stability"
            raise UsageError(f"'{each.name}' is no mask, and only a mask {why}", "name a mask: mmsurgery status")
    description = patches.describe(path) if is_patch(path) else masks.describe(path, others=found)
    if stability:
        from mmsurgery.stability import measure_stability

        description["stability"] = measure_stability(workspace(), path, progress=progress).record
    heatmaps = masks.heatmaps(description)
    if picture is not None:
        if not heatmaps:
            raise UsageError(f"{description['kind']} '{artifact}' has no heatmap", "name a mask, patch or saliency")
        from mmsurgery.figures.heatmap import draw

        draw(heatmaps, picture)
    if page is not None:
        from mmsurgery.report.inspection import write_inspection

        write_inspection(page, path.name, description, heatmaps)
    return Inspection(path, description, heatmaps)


def is_mask(path: Path) -> bool:
    """Whether a path can be a mask: a safetensors file that is no patch."""
    return path.is_file() and path.suffix == ".safetensors" and not is_patch(path)


def is_patch(path: Path) -> bool:
    """Whether a path is a safetensors file that says of itself that it is a patch."""
    return path.is_file() and path.suffix == ".safetensors" and says_patch(path)


def find(workspace: Callable[[], Workspace], artifact: str) -> Path:
    """The path of an artifact named by path, or by name in the workspace (masks first)."""
    if "/" in artifact or Path(artifact).exists():
        path = Path(artifact)
        if not path.exists():
            raise MissingArtifact(f"{path} does not exist")
        return path
    here = workspace()
    places = {
        **{p.parent.name: p for p in here.path("experiments").glob("[!.]*/results.json")},
        **{p.stem: p for p in here.path("diffs").glob("[!.]*.json")},
        **{p.stem: p for p in here.path("evals").glob("[!.]*.json")},
        **{name: here.patch_path(name) for name in here.patches()},
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
