"""How long comparing two models takes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.diff.difference import compare, heatmaps
from mmsurgery.diff.run import PICTURES
from mmsurgery.names import Address
from mmsurgery.plans.times.files import Few, some
from mmsurgery.plans.times.watch import now

READ = 64 << 20
"""Bytes of each model that are compared for the time, at most; one tensor at least."""


def diff_time(
    before: CheckpointFiles,
    after: CheckpointFiles,
    addresses: Mapping[str, Address],
    *,
    top: int,
    listed: int,
    mask: Mask | None,
) -> dict[str, float]:
    """Seconds by what is done: some tensors are compared, and the pictures of what is found are drawn.

    Raises:
        as `compare`.
    """
    from mmsurgery.figures.heatmap import draw

    sizes = {name: before.array(name).nbytes for name in before.names}
    names = some(sizes, READ)
    share = sum(sizes[name] for name in names) / max(sum(sizes.values()), 1)
    if mask is not None:
        mask = dataclasses.replace(mask, parameters={name: mask.parameters[name] for name in names})
    few, others = Few.of(before, names), Few.of(after, names)
    begun = now()
    found = compare(few, others, addresses, top=max(1, round(top * share)), listed=listed, mask=mask)
    comparing = (now() - begun) / share
    begun = now()
    with tempfile.TemporaryDirectory() as folder:
        for suffix in PICTURES:
            draw(heatmaps(found.to_json()), Path(folder, f"heatmap{suffix}"))
    return {"comparing": comparing, "drawing": now() - begun}
