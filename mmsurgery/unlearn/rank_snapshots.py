"""Snapshots of a run that several ranks share: each keeps its own, all go on after the same step."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery import interruption
from mmsurgery.artifacts.snapshots import BEGIN_ANEW, Arrays, Snapshots
from mmsurgery.errors import Mismatch
from mmsurgery.ranks import Ranks

if TYPE_CHECKING:
    from mmsurgery.workspace import Progress


class RankSnapshots(Snapshots):
    """A rank's snapshots, in the folder `rank-I-of-N` of the run's.

    Ranks are never more than one snapshot apart, and each keeps its two newest: there is one that all have.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], ranks: Ranks, *, force: bool) -> None:
        super().__init__(folder / _own(ranks), origin, force=force)
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


def snapshots_of(made: Path, origin: Mapping[str, Any], ranks: Ranks, progress: Progress, *, force: bool) -> Snapshots:
    """The snapshots of the run that makes `made` on these ranks.

    Args:
        force: those of other settings, inputs or another number of ranks are removed.

    Raises:
        Mismatch: if they are of another number of ranks, of which each holds other rows; or as `Snapshots.check`.
    """
    folder = Snapshots.folder_of(made)
    counts = {_count(path) for path in folder.glob("*")} if ranks.first else set()
    if other := next(iter(counts - {0, ranks.count}), None):
        processes = "one process" if other == 1 else f"{other} processes"
        what = f"{folder} holds an interrupted run of {processes}, this is of {ranks.count}"
        if not force:
            raise Mismatch(what, BEGIN_ANEW)
        progress.note(f"{what}: beginning anew")
        shutil.rmtree(folder, ignore_errors=True)
    ranks.barrier()  # no rank looks before
    if ranks.count > 1:
        return RankSnapshots(folder, origin, ranks, force=force)
    return Snapshots(folder, origin, force=force)


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
