"""Snapshots of a run that several ranks share: each keeps its own, all go on after the same step."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery import interruption
from mmsurgery.artifacts.snapshots import Arrays, Snapshots
from mmsurgery.ranks import Ranks

if TYPE_CHECKING:
    from mmsurgery.workspace import Progress


class RankSnapshots(Snapshots):
    """A rank's snapshots, in the folder `rank-I-of-N` of the run's.

    Ranks are never more than one snapshot apart, and each keeps its two newest: there is one that all have.
    """

    def __init__(self, folder: Path, key: str, ranks: Ranks) -> None:
        super().__init__(folder / _own(ranks), key)
        self._ranks = ranks

    def due(self) -> bool:
        """Whether it is time for one on any rank; a signal that one got stops all of them."""
        asked, due = zip(*self._ranks.exchange((interruption.asked(), super().due())), strict=True)
        if any(asked) and not interruption.asked():
            interruption.interrupt(signal.SIGTERM)
        return any(due)

    def load(self, progress: Progress) -> tuple[dict[str, Any], Arrays] | None:
        while True:
            newest = self._ranks.exchange(max((_step(path) for path in self._newest()), default=-1))
            self._forget_after(min(newest))
            found = super().load(progress)
            done = self._ranks.exchange(-1 if found is None else len(found[0]["losses"]))
            if len(set(done)) == 1:
                return found
            self._forget_after(min(done))

    def _forget_after(self, step: int) -> None:
        for path in self._newest():
            if _step(path) > step:
                path.unlink()


def snapshots_of(made: Path, key: str, ranks: Ranks, progress: Progress) -> Snapshots:
    """The snapshots of the run that makes `made` on these ranks. Those of another number of ranks are of no use, for
    each holds other rows: they are removed."""
    alone = Snapshots.of(made, key)
    counts = {_count(path) for path in alone.folder.glob("*")} if ranks.first else set()
    if other := next(iter(counts - {0, ranks.count}), None):
        processes = "one process" if other == 1 else f"{other} processes"
        progress.note(f"an interrupted run was one of {processes}, this is of {ranks.count}: starting anew")
        shutil.rmtree(alone.folder, ignore_errors=True)
    ranks.barrier()  # no rank looks before
    return alone if ranks.count == 1 else RankSnapshots(alone.folder, key, ranks)


def _count(path: Path) -> int:
    """How many ranks something in a run's folder of snapshots is of; 0 for what is none."""
    if path.name.startswith("step-"):
        return 1
    end = path.name.rpartition("-of-")[2]
    return int(end) if path.name.startswith("rank-") and end.isdecimal() else 0


def _own(ranks: Ranks) -> str:
    return f"rank-{ranks.rank + 1}-of-{ranks.count}"


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
