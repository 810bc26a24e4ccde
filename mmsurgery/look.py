"""`inspect`: describe an artifact, draw its heatmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery import patches
from mmsurgery.artifacts.files import given_path
from mmsurgery.artifacts.find import find
from mmsurgery.errors import UsageError
from mmsurgery.masks import inspect as masks
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.figures.heatmap import Heatmap
    from mmsurgery.workspace import Workspace


PICTURES = (b"\x89png", b"<?xml", b"<svg")
"""How pictures begin, in lower case."""


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
            for picture or page, or another file in their place.
    """
    picture, page = (
        None if name is None else given_path(Path(name), over)
        for name, over in ((png, PICTURES), (html, (b"<!doctype html",)))
    )
    found = find(workspace, artifact)
    beside = [find(workspace, other) for other in others]
    for each in (found, *beside) if others or stability else ():
        if each.kind != "mask":
            why = "has overlaps" if others else "has a stability"
            raise UsageError(f"'{each.name}' is no mask, and only a mask {why}", "name a mask: mmsurgery status")
    path, paths = found.path, [each.path for each in beside]
    description = patches.describe(path) if found.kind == "patch" else masks.describe(path, others=paths)
    if found.also:
        progress.note(f"this is the {found.kind}; of the same name are {', '.join(found.also)}")
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
