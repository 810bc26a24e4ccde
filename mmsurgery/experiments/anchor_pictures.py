"""Other anchor pictures than the benchmark's own, for what they are worth: of portraits, whose pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mmsurgery.artifacts.files import atomic_folder
from mmsurgery.errors import UnusableData
from mmsurgery.portraits.drawing import SIZE, png
from mmsurgery.portraits.world import ANCHOR_RENDERINGS, ANCHORS, World, generator
from mmsurgery.workspace import Workspace

_FEW = 20


def anchor_pictures(workspace: Workspace, kind: str) -> Path:
    """Folder of the level's anchor pictures of a kind, drawn where they are missing.

    Args:
        kind: of `KINDS`.

    Raises:
        UnusableData: for another benchmark than portraits.
    """
    if workspace.settings.benchmark.name != "portraits":
        raise UnusableData("other anchor pictures are drawn for portraits alone", "pass --anchors to mmsurgery apply")
    folder = workspace.path("anchors", kind)
    if not folder.is_dir():
        with workspace.lock(), atomic_folder(folder) as new:
            new.mkdir(exist_ok=True)
            for name, picture in KINDS[kind](workspace.settings.benchmark.world):
                (new / f"{name}.png").write_bytes(picture)
    return folder


def _other_world(seed: int) -> Iterator[tuple[str, bytes]]:
    """As many faces of another world."""
    world = World(seed + 1_000_003)
    for person in world.anchors:
        for rendering in ANCHOR_RENDERINGS:
            yield f"{person.id}-{rendering.rpartition('/')[2]}", world.picture(person, rendering)


def _few(seed: int) -> Iterator[tuple[str, bytes]]:
    """A tenth of the faces."""
    world = World(seed)
    for person in world.anchors[:_FEW]:
        for rendering in ANCHOR_RENDERINGS:
            yield f"{person.id}-{rendering.rpartition('/')[2]}", world.picture(person, rendering)


def _unrelated(seed: int) -> Iterator[tuple[str, bytes]]:
    """As many pictures without any face: patches of colour, and noise."""
    for number in range(ANCHORS * len(ANCHOR_RENDERINGS)):
        rng = generator(seed, "unrelated", number)
        tiles = rng.integers(0, 256, (4, 4, 3)).repeat(SIZE // 4, axis=0).repeat(SIZE // 4, axis=1)
        noisy = np.clip(tiles + rng.normal(0, 12, (SIZE, SIZE, 3)), 0, 255)
        yield f"{number:03}", png(noisy.astype(np.uint8))


KINDS: dict[str, Callable[[int], Iterator[tuple[str, bytes]]]] = {
    "other-world": _other_world,
    "few": _few,
    "unrelated": _unrelated,
}
"""Faces of another world, a tenth of the faces, and pictures of anything but faces."""
