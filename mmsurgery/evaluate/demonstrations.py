"""Whose solved questions stand before the ones that are asked, in one-shot evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmsurgery.data.benchmark import TASKS
from mmsurgery.data.samples import Item
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate.asking import Asking
from mmsurgery.evaluate.protocols import Protocol

SEED = 0


@dataclass(frozen=True)
class Demonstrations:
    """One person's solved questions for each column where there are any; the person is not scored there."""

    people: Mapping[str, str] = field(default_factory=dict)
    """Column (`forget_vqa`, `forget_vqa.cloze`) -> the person."""
    items: Mapping[str, Sequence[Item]] = field(default_factory=dict)
    """Column -> what stands before each of its questions, in order."""


def chosen(columns: Mapping[str, Sequence[Item]], protocol: Protocol, asking: Asking) -> Demonstrations:
    """The demonstrations of a one-shot protocol; none of a zero-shot one. Drawn by a fixed seed from the people
    themselves, so that order and number of columns do not matter.

    Args:
        columns: all that is to be asked, by column and task (`forget_vqa.cloze`).

    Raises:
        UnusableData: if nobody has solved questions of the kinds that are needed.
    """
    if not protocol.shots:
        return Demonstrations()
    wanted = [name for name, items in columns.items() if items and asking.demonstrated(*_named(name))]
    if protocol.demonstrations == "scored":
        people = {name: _drawn({item.person for item in columns[name]}, name) for name in wanted}
        return Demonstrations(people, {name: _of(columns[name], people[name]) for name in wanted})
    sources = {name: _retain(name) for name in wanted}
    able = [{item.person for item in columns.get(source, ())} for source in sources.values()]
    if wanted and not set.intersection(*able):
        kinds = ", ".join(sorted(set(sources.values())))
        raise UnusableData(
            f"no retain person has questions of all kinds to be demonstrated: {kinds}",
            "use --shots 0, or --demonstrations scored",
        )
    person = _drawn(set.intersection(*able), "retain") if wanted else ""
    return Demonstrations(
        dict.fromkeys(wanted, person), {name: _of(columns[source], person) for name, source in sources.items()}
    )


def scored(items: Sequence[Item], person: str | None) -> list[Item]:
    """The items that are not about the demonstrated person."""
    return [item for item in items if item.person != person]


def _named(name: str) -> tuple[str, str]:
    column, _, task = name.partition(".")
    return column, task or TASKS[0]


def _retain(name: str) -> str:
    """The retain column of the same modality and task."""
    column, dot, task = name.partition(".")
    return f"retain_{column.rpartition('_')[2]}{dot}{task}"


def _drawn(people: Iterable[str], what: str) -> str:
    return min(people, key=lambda person: hashlib.sha256(f"{SEED}/{what}/{person}".encode()).digest())


def _of(items: Sequence[Item], person: str) -> list[Item]:
    return [item for item in items if item.person == person]
