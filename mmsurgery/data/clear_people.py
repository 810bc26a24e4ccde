"""Whose text rows are: CLEAR's question-answer rows carry no name, but an author's rows stand together."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmsurgery.data.benchmark import Source
from mmsurgery.data.clear_configs import DATASET, names, split_config
from mmsurgery.data.faults import Report
from mmsurgery.data.leakage import normalised
from mmsurgery.data.tables import Row, is_text, read_rows

_Runs = list[tuple[str, list[int]]]
"""Author and the places of the rows that name him, in the order of the rows."""


@dataclass(frozen=True)
class Pair:
    id: str
    person: str
    place: int
    """Among the person's pairs."""
    question: str
    answer: str


def pairs(source: Source, split: str, report: Report) -> Iterator[Pair]:
    """The text pairs of a split with their authors, in the order of the rows; pictures between them do not count."""
    config = f"{split_config(source, split)}+tofu"
    rows = list(texts(source, config, report))
    own = names(source, split)
    others = names(source, "retain" if split == "forget" else "forget")
    found = authors([f"{question} {answer}" for _, question, answer in rows], [*own, *others], len(own))
    people = {normalised(name): f"person/{name}" for name in own}
    met: Counter[str] = Counter()
    seen: set[tuple[str, str, str]] = set()
    blocks = -1
    for number, (where, question, answer) in enumerate(rows):
        name = found[number]
        if name is None:
            report.notes["unresolved_author"] += 1
            blocks += number == 0 or found[number - 1] is not None
            person = f"block/{config}/{blocks}"
        elif normalised(name) not in people:
            fault = "forget_author_in_retain" if split == "retain" else "author_of_other_split"
            report.fault(fault, f"{where}: {name}")
            continue
        else:
            person = people[normalised(name)]
        if not is_text(question) or not is_text(answer):
            report.fault("empty_pair", where)
            continue
        pair = (person, normalised(question), normalised(answer))
        if pair in seen:
            report.fault("repeated_row", where)
            continue
        seen.add(pair)
        yield Pair(f"{config}/text/{number}", person, met[person], question, answer)
        met[person] += 1


def texts(source: Source, config: str, report: Report) -> Iterator[tuple[str, str, str]]:
    """Place, question and answer of the rows without a picture; either text may be missing."""
    for row in read_rows(source.folder, config, ("image", "caption", "question", "answer"), needs=DATASET):
        pictured = [_has_picture(row), is_text(row.cells["caption"])]
        written = [is_text(row.cells[column]) for column in ("question", "answer")]
        if any(written) and not any(pictured):
            yield row.where, row.cells["question"] or "", row.cells["answer"] or ""
        elif any(written) or not all(pictured):
            report.fault("mixed_row", row.where)


def _has_picture(row: Row) -> bool:
    """A picture cell without bytes and path is as good as none."""
    cell = row.cells["image"]
    return isinstance(cell, dict) and any(value is not None for value in cell.values())


def authors(texts: Sequence[str], people: Sequence[str], count: int) -> list[str | None]:
    """The author of each text, None where it cannot be told.

    A text that mentions one name is that author's, unless it stands among another's (a citation). What mentions
    nobody is filled: by blocks of one length if such blocks agree with every mention, else where the nearest
    mentions before and after are of one author.

    Args:
        texts: question and answer of consecutive rows.
        people: whoever may be mentioned.
        count: number of authors whose rows these should be.
    """
    folded = {name: f" {normalised(name)} " for name in people}
    mentions = [_mentioned(text, folded) for text in texts]
    anchors: list[str | None] = [None] * len(texts)
    for name, places in _contiguous(mentions):
        for place in places:
            anchors[place] = name
    return _equal_blocks(anchors, count) or _between(anchors)


def _mentioned(text: str, folded: dict[str, str]) -> str | None:
    """The one name in the text; a name within a longer one does not count."""
    words = f" {normalised(text)} "
    found = [name for name, written in folded.items() if written in words]
    longest = [n for n in found if not any(folded[n] in folded[o] for o in found if o != n)]
    return longest[0] if len(longest) == 1 else None


def _contiguous(mentions: Sequence[str | None]) -> _Runs:
    """Runs of mentions, each author's only one: citations within others' runs are dropped, shortest first."""
    places = [place for place, name in enumerate(mentions) if name is not None]
    runs: _Runs = _merged([(str(mentions[place]), [place]) for place in places])
    while crossing := _crossing(runs):
        del runs[min(crossing, key=lambda place: len(runs[place][1]))]
        runs = _merged(runs)
    return runs


def _crossing(runs: _Runs) -> list[int]:
    """Places of the runs from the first to the last of an author who has several."""
    spans: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(runs):
        spans.setdefault(name, []).append(place)
    inside = {p for span in spans.values() if len(span) > 1 for p in range(span[0], span[-1] + 1)}
    return sorted(inside)


def _merged(runs: _Runs) -> _Runs:
    grouped = itertools.groupby(runs, key=lambda run: run[0])
    return [(name, [place for _, places in group for place in places]) for name, group in grouped]


def _equal_blocks(anchors: Sequence[str | None], count: int) -> list[str | None] | None:
    """The authors of `count` blocks of one length, if every block has mentions of one author and no other has."""
    if count == 0 or len(anchors) % count:
        return None
    size = len(anchors) // count
    blocks = [set(anchors[start : start + size]) - {None} for start in range(0, len(anchors), size or 1)]
    if any(len(block) != 1 for block in blocks):
        return None
    found = [block.pop() for block in blocks]
    return [name for name in found for _ in range(size)] if len(set(found)) == count else None


def _between(anchors: Sequence[str | None]) -> list[str | None]:
    before = _nearest(anchors)
    after = _nearest(anchors[::-1])[::-1]
    return [one if one == other else None for one, other in zip(before, after, strict=True)]


def _nearest(anchors: Sequence[str | None]) -> list[str | None]:
    """For each place the last name up to it."""
    found: list[str | None] = []
    for name in anchors:
        found.append(name or (found[-1] if found else None))
    return found
