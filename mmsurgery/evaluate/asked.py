"""What every model is asked: the columns of a benchmark under a protocol, demonstrations and subsets seen to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsurgery.data.benchmark import TASKS, benchmark, notes_of, source_of
from mmsurgery.data.samples import Item
from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.evaluate import columns as tables
from mmsurgery.evaluate import fluency, official, open_answers, outcomes, scoring, truth
from mmsurgery.evaluate.asking import NEW_TOKENS, Asking, asking_of
from mmsurgery.evaluate.demonstrations import Demonstrations, chosen, scored
from mmsurgery.evaluate.protocols import LIKELIHOOD, OFFICIAL, OPEN, Protocol
from mmsurgery.evaluate.request import requested
from mmsurgery.evaluate.statistics import RESAMPLES
from mmsurgery.evaluate.subset import stratified
from mmsurgery.workspace import Progress, Workspace

TASKS_OF = {
    LIKELIHOOD: ("classification", truth.TASK),
    OFFICIAL: ("classification", "cloze", "generation"),
    OPEN: ("classification",),
}
"""Protocol -> the tasks that it can score."""
BUDGETS = {LIKELIHOOD: scoring.BUDGET, OFFICIAL: official.BUDGET, OPEN: open_answers.BUDGET}
"""Protocol -> tokens of one batch."""

Columns = Mapping[str, Sequence[Item]]
"""Column, with its task where that is not classification (`forget_vqa.cloze`) -> what is asked."""


@dataclass(frozen=True)
class Asked:
    """What every model is asked, and how."""

    protocol: Protocol
    request: str | None
    subset: int | None
    asking: Asking
    columns: Columns
    demonstrations: Demonstrations
    notes: Mapping[str, str]
    """Column -> what a reader of it must know."""
    every: Columns
    """The columns before a subset was drawn: what is known of other people."""

    @property
    def options(self) -> str:
        """Its options on the command line."""
        request = "" if self.request is None else f" --request {self.request}"
        return self.protocol.options + request + ("" if self.subset is None else f" --subset {self.subset}")

    def settings(self, threads: int) -> dict[str, Any]:
        """What the numbers depend on."""
        found: dict[str, Any] = {
            **self.protocol.settings(BUDGETS[self.protocol.name], NEW_TOKENS),
            "resamples": RESAMPLES,
            "seed": tables.SEED,
            "threads": threads,
        }
        if self.protocol.name == OFFICIAL and self.asking.name != "mllmu-bench":
            found["asking"] = self.asking.name
        if self.protocol.name == OPEN:
            found["judged"] = {"rules": outcomes.RULES, "fluent": outcomes.FLUENT, "budget": fluency.BUDGET}
        if self.demonstrations.people:
            found["demonstrations"] = dict(self.demonstrations.people)
        for key, value in (("request", self.request), ("subset", self.subset)):
            if value is not None:
                found[key] = value
        return found


def what_is_asked(
    workspace: Workspace, protocol: Protocol, request: str | None, subset: int | None, progress: Progress
) -> Asked:
    """What a workspace's benchmark asks under a protocol; see `evaluate`.

    Raises:
        UsageError: for shots where the benchmark is asked zero-shot.
        UnusableData: if there is nothing to ask.
    """
    source, own = source_of(workspace), benchmark(workspace.settings.benchmark.name)
    reader = own if request is None else requested(workspace, own, request)
    found: dict[str, Sequence[Item]] = {}
    for task in TASKS_OF[protocol.name]:
        for column in reader.columns(source):
            name = column if task == TASKS[0] else f"{column}.{task}"
            if items := reader.items(source, column, task):
                found[name] = [dataclasses.replace(item, column=name) for item in items]
    for column in reader.columns(source):
        if not any(name.partition(".")[0] == column for name in found):
            progress.note(f"column {column} has nothing that protocol {protocol.id} can ask, and is left out")
    notes = notes_of(own, source)
    for column in sorted(notes.keys() - {*reader.columns(source)}):
        progress.note(f"{column}: {notes[column]}")
    if not found:
        other = next(each for each in TASKS_OF if each != protocol.name)
        raise UnusableData(
            f"the benchmark has nothing that protocol {protocol.id} can ask",
            f"add --protocol {other}, or check its files",
        )
    asking = asking_of(own)
    demonstrations = chosen(found, protocol, asking)
    if protocol.shots and not demonstrations.people:
        raise UsageError(f"benchmark '{own.name}' is asked zero-shot", "leave --shots out")
    columns = {name: scored(items, demonstrations.people.get(name)) for name, items in found.items()}
    if alone := [name for name, items in columns.items() if not items]:
        raise UnusableData(
            f"{', '.join(alone)}: nobody is left to be asked about beside the person whose questions are demonstrated",
            "leave --shots out",
        )
    every = columns
    if subset is not None:
        columns = {name: stratified(items, subset) for name, items in columns.items()}
    return Asked(protocol, request, subset, asking, columns, demonstrations, notes, every)
