"""What `diff` would need."""

from __future__ import annotations

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.diff import stream
from mmsurgery.diff.difference import LISTED, TOP
from mmsurgery.diff.run import mask_of as mask_of
from mmsurgery.errors import UsageError
from mmsurgery.memory import gigabytes
from mmsurgery.plans import plan as terms
from mmsurgery.plans.plan import Passes, Plan, free_below
from mmsurgery.plans.probe import predicted
from mmsurgery.plans.sizes import Sizes
from mmsurgery.plans.times.diff import diff_time
from mmsurgery.plans.times.files import hashing
from mmsurgery.plans.times.watch import now
from mmsurgery.workspace import SILENT, Progress, Workspace

_LISTED_IN_MEMORY = 2 * (4 + 4 + 8)
"""Bytes of a listed entry: up to twice as many are held, each a pattern, a difference and a place."""
_IN_FILE = 120
"""Bytes of a listed entry in the record."""
_PICTURES = 1_000_000
_BLOCK = 40
"""Bytes a weight of a block: old, new, both as float32, difference, pattern, bin."""


def plan_diff(
    workspace: Workspace,
    before: str | None = None,
    after: str | None = None,
    *,
    top: int | None = None,
    list_: int = LISTED,
    force: bool = False,
    progress: Progress = SILENT,
) -> Plan:
    """What `diff` of the same arguments would need; nothing is written and no lock is taken.

    It streams: both files are read once, and a second time where a block holds a difference as large as the
    n-th largest. In memory are a histogram of 2^18 bins, one of 2^13 for each heatmap cell, the greatest pattern of
    each block (40 bytes), twice the listed entries, one block, and the packed mask, if there is one.

    Raises:
        as `diff`, as far as models and numbers are concerned.
    """
    if (top is not None and top < 1) or list_ < 0:
        raise UsageError(
            f"top {TOP if top is None else top} and list {list_} make no sense", "pass --top 1000 --list 1000"
        )
    begun = now()
    old_name, old = workspace.find_model(before or "vanilla")
    new_name, new = workspace.find_model(after or workspace.last_unlearned())
    sizes = Sizes.of(old_name, old)
    canonical = sizes.family.canonical
    first, second = CheckpointFiles(old, canonical), CheckpointFiles(new, canonical)
    masks = [workspace.mask_path(name) for name in workspace.masks()]
    cells = {(address.layer_key, address.component) for address in sizes.addresses.values()}
    memory = {
        "histograms": 8 * (1 << (31 - stream.LOW_BITS)) + 8 * (1 << stream.LOW_BITS) * len(cells),
        "blocks": _BLOCK * stream.BLOCK + 40 * (sizes.count() // stream.BLOCK + len(sizes.shapes)),
        "listed": _LISTED_IN_MEMORY * list_,
        terms.BITS: -(-sizes.count() // 8) if masks else 0,
    }
    others = Sizes.of(new_name, new)
    both = sizes.stored + others.stored
    path, notes = workspace.diff_path(old_name, new_name), []
    if path.exists() and not force:
        notes.append(f"{path.name} is there: nothing is done without --force")
    _, mask = mask_of(workspace, new)
    ready = now() - begun

    def timed() -> dict[str, float]:
        n = top or (mask and mask.selected) or TOP
        found = diff_time(first, second, sizes.addresses, top=n, listed=list_, mask=mask)
        return {"hashing": hashing([(sizes, old), (others, new)]), **found}

    seconds, how = predicted(ready, timed)
    return Plan(
        verb="diff",
        model=sizes.size,
        samples={},
        passes=Passes(forward=0, backward=0),
        memory={term: size for term, size in memory.items() if size},
        disk={"record": _IN_FILE * list_ + 100_000, "pictures": _PICTURES},
        disk_free=free_below(workspace.path("diffs")),
        seconds=seconds,
        notes=(*notes, f"reads {gigabytes(both)}, at most twice", how),
    )
