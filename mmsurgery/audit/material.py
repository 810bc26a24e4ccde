"""What the probes of a workspace ask: a bounded number of its questions, its samples, and what was held out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.held_out import HELD_OUT, HeldOut, read_held_out
from mmsurgery.data.samples import Item, Sample, data_sha256
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate.subset import stratified
from mmsurgery.workspace import Workspace

ASKED = 150
"""Most questions of a column that a probe asks, spread over its people."""
EVERY = 10**9
"""All questions of a column."""


@dataclass(frozen=True)
class Material:
    """Of one workspace, as its settings are now."""

    workspace: Workspace
    folder: Path | None
    """Of what was held out, where there is one."""
    _items: dict[str, list[Item]] = field(default_factory=dict, init=False, repr=False)
    _samples: dict[str, list[Sample]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, workspace: Workspace, folder: Path | None = None) -> Material:
        """
        Args:
            folder: of what was held out; the benchmark's own where None and it has one.
        """
        own = workspace.data_dir / HELD_OUT
        return cls(workspace, folder or (own if own.is_dir() else None))

    def items(self, column: str, most: int = ASKED) -> list[Item]:
        """At most `most` questions with options of a column; none where the benchmark lacks it."""
        if column not in self._items:
            reader, source = benchmark(self.workspace.settings.benchmark.name), source_of(self.workspace)
            found = reader.items(source, column) if column in reader.columns(source) else []
            self._items[column] = [item for item in found if item.options]
        return stratified(self._items[column], most)

    @property
    def forget(self) -> list[Item]:
        """
        Raises:
            UnusableData: if there is nothing to ask.
        """
        if not (found := self.items("forget_vqa")):
            raise UnusableData("there are no questions about forgotten pictures", "add test rows to the benchmark")
        return found

    @property
    def retain(self) -> list[Item]:
        """
        Raises:
            UnusableData: if there is nothing to ask.
        """
        if not (found := self.items("retain_vqa")):
            raise UnusableData("there are no questions about retained pictures", "add test rows to the benchmark")
        return found

    def samples(self, part: str) -> list[Sample]:
        """All training samples of a part."""
        if part not in self._samples:
            reader = benchmark(self.workspace.settings.benchmark.name)
            self._samples[part] = reader.samples(source_of(self.workspace), part)
        return self._samples[part]

    @functools.cached_property
    def held_out(self) -> HeldOut:
        """
        Raises:
            InputRefused: as `read_held_out`.
            UnusableData: if somebody is held out whom the benchmark knows, or it is asked about somebody it does not.
        """
        if self.folder is None:
            return HeldOut((), ())
        found = read_held_out(self.folder)
        known = {sample.person for part in ("forget_vqa", "retain_vqa") for sample in self.samples(part)}
        if seen := [sample for sample in found.strangers if sample.person in known]:
            what = f"{self.folder}: {seen[0].id} is about '{seen[0].person}', whom the benchmark trains on"
            raise UnusableData(what, "take other people for train rows, or make it a test row with options")
        if strange := [item for item in found.items if item.person not in known]:
            what = (
                f"{self.folder}: {strange[0].id} asks about '{strange[0].person}', whom the benchmark does not train on"
            )
            raise UnusableData(what, "name the person as the benchmark does")
        return found

    @functools.cached_property
    def forgotten(self) -> frozenset[str]:
        """Keys of the people to be forgotten."""
        return frozenset(sample.person for sample in self.samples("forget_vqa"))

    @functools.cached_property
    def digests(self) -> dict[str, Any]:
        """What the probes' results depend on besides the models."""
        columns = [
            column
            for column in ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa", "forget_perception", "test_vqa")
            if self.items(column)
        ]
        return {
            "items": {column: data_sha256(self.items(column, EVERY)) for column in columns},
            "samples": {part: data_sha256(self.samples(part)) for part in ("forget_vqa", "retain_vqa")},
            "held_out": None
            if self.folder is None
            else [data_sha256(self.held_out.strangers), data_sha256(self.held_out.items)],
        }


def chance_of(items: Sequence[Item]) -> float:
    """What guessing gets of questions with options."""
    return sum(1 / len(item.options or "1") for item in items) / len(items)
