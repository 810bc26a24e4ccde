"""Columns about the people whom an earlier deletion request named, whatever the settings forget now."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mmsurgery.data.benchmark import Benchmark, Source
from mmsurgery.data.samples import Item
from mmsurgery.unlearn.deletions import earlier_requests, read_request
from mmsurgery.unlearn.request import FORGET
from mmsurgery.workspace import Workspace

_FORGET, _RETAIN = "forget_", "retain_"


@dataclass(frozen=True)
class Requested:
    """The items of a benchmark with other people to forget.

    Forget columns hold what forget and retain column of that kind ask about `people`; retain columns what they
    ask about everybody whom neither this request, nor one before it, nor the settings forget. Of other columns
    those about nobody but the settings' forget people (perception, other pictures) ask about `people`, as far as
    the files have them; the rest is the benchmark's own.
    """

    reader: Benchmark
    people: frozenset[str]
    forgotten: frozenset[str]
    """Everybody whom some request names; with the people above."""

    def columns(self, source: Source) -> tuple[str, ...]:
        return self.reader.columns(source)

    def items(self, source: Source, column: str, task: str = "classification") -> list[Item]:
        """As `Benchmark.items`; a column may be empty."""
        known = self.reader.columns(source)
        kind = column.removeprefix(_FORGET).removeprefix(_RETAIN)
        if _RETAIN + kind not in known:
            items = self.reader.items(source, column, task)
            current = {sample.person for sample in self.reader.samples(source, FORGET)}
            if not {item.person for item in items} <= current:
                return items
            theirs = dataclasses.replace(source, options={**source.options, "people": self.people})
            return [item for item in self.reader.items(theirs, column, task) if item.person in self.people]
        now, kept = (
            self.reader.items(source, name, task) if (name := side + kind) in known else []
            for side in (_FORGET, _RETAIN)
        )
        if column.startswith(_RETAIN):
            current = {item.person for item in now}
            return [item for item in kept if item.person not in self.forgotten | current]
        return [dataclasses.replace(item, column=column) for item in [*now, *kept] if item.person in self.people]


def requested(workspace: Workspace, reader: Benchmark, model: str) -> Requested:
    """The items about the people whom `model` was made to forget.

    Raises:
        as `deletions.read_request`.
    """
    people = frozenset(read_request(workspace, model))
    every = people.union(*earlier_requests(workspace, model).values())
    return Requested(reader, people, every)
