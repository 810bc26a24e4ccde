"""Cutting a part into blocks that can be measured on their own and added up."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import machine_fault
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import MachineFault, UsageError
from mmsurgery.workspace import Workspace


@dataclass(frozen=True)
class Shard:
    """One of `count` blocks of a part's units, `index` from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard written `I/N`.

        Raises:
            UsageError: if it is not that, or I is not in 1 to N.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"'{text}' is no shard", "write I/N with I from 1 to N, such as 2/8")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def every(cls, count: int) -> list[Shard]:
        return [cls(index, count) for index in range(1, count + 1)]

    def block(self, samples: int, unit: int) -> slice:
        """Which of `samples` samples belong to the shard: whole units of `unit` samples, so that the
        units of all shards are those of the whole part.

        Raises:
            UsageError: if there are fewer units than shards.
        """
        units = -(-samples // unit)
        if units < self.count:
            raise UsageError(f"{samples} samples are too few for {self.count} shards", f"use at most {units}")
        first, last = (units * edge // self.count for edge in (self.index - 1, self.index))
        return slice(first * unit, min(last * unit, samples))


def summed(maps: Sequence[SaliencyMap]) -> tuple[SaliencyMap, dict[str, Any]]:
    """The sum of a part's shards, and what its provenance says of how they were measured."""
    records = [one.provenance for one in maps]
    merged = SaliencyMap.merge(maps)
    layouts = sorted({str(record["layout"]) for record in records if "layout" in record})
    return merged, {
        "path": "+".join(sorted({str(record["path"]) for record in records})),
        "supervised_tokens": sum(record["supervised_tokens"] for record in records),
        "zero_gradient": sorted({name for record in records for name in record["zero_gradient"]}),
        "loss_scale": records[0]["loss_scale"],
        "device": "+".join(sorted({str(record.get("device", "unknown")) for record in records})),
        **({"layout": "+".join(layouts)} if layouts else {}),
        "shards": len(maps),
    }


def unfinished_shards(workspace: Workspace, part: str, estimator: str = "sample", batch_size: int = 4) -> list[Shard]:
    """Shards that are still to be measured of a part of which some are there; the last one, where all are and were not
    added up; none of a part that is there or was not begun in shards."""
    folder = workspace.saliency_dir(part, estimator, batch_size)
    there = [Shard.parse("/".join(found)) for found in _shards_of(folder)]
    if folder.exists() or not there:
        return []
    every = Shard.every(max(shard.count for shard in there))
    return [shard for shard in every if shard not in there] or every[-1:]


def _shards_of(folder: Path) -> list[tuple[str, str]]:
    pattern = re.compile(re.escape(folder.name) + r"\.shard-(\d{1,6})-of-(\d{1,6})")
    names = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    return [found.groups() for name in names if (found := pattern.fullmatch(name))]  # type: ignore[misc]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others from measuring the same shard.

    Raises:
        MachineFault: if somebody does already.
    """
    import filelock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise MachineFault(f"{folder.name} is being measured by another process", "wait for it to finish") from error
    except OSError as error:
        raise machine_fault(error, folder) from error
    try:
        yield
    finally:
        lock.release()
