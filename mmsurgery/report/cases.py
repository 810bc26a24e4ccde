"""Cases (the paper's Tables 3 and 6): one question, and what every row answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.errors import InputRefused
from mmsurgery.figures.looks import OUTCOMES
from mmsurgery.report import numbers
from mmsurgery.report.fields import Fields
from mmsurgery.report.pictures import Pictures
from mmsurgery.report.results import Results
from mmsurgery.report.texts import ANSWER, NAME, SENTENCE, cut

SHOWN = 48
"""Cases of a panel, at most; the file has them all."""
OPEN = 4
"""Cases that are not folded."""


@dataclass(frozen=True)
class Answer:
    label: str
    text: str
    share: str
    """Of all open answers in the column that the row gave correctly; empty where that is not known."""
    mark: str
    """Its outcome; `paraphrased` for what is right in other words. A class of the style."""
    said: str
    """The mark in words."""
    repeated: bool


@dataclass(frozen=True)
class Case:
    where: str
    """Column and level."""
    person: str
    question: str
    gold: str
    picture: Markup | None
    """A `data:` address."""
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Cases:
    """The cases of a panel."""

    rule: str
    cases: Sequence[Case]
    total: int
    notes: Sequence[str]
    """What is not shown, and why."""
    withheld: bool
    """Whether there are pictures that were not asked for."""


Key = tuple[str, str]
"""A level's folder and a column."""


def cases(results: Results, panel: str, pictures: Pictures | None) -> Cases | None:
    """The cases of a panel; None where the experiment has none.

    Args:
        pictures: where pictures of people are found; None to leave them out.
    """
    if not results.found.has("cases"):
        return None
    found = results.found.get("cases")
    entries = [entry for entry in found.get("entries").entries() if entry.get("panel").text() == panel]
    if not entries:
        return None
    shown = entries[:SHOWN]
    addresses, notes = _pictures(results, panel, shown, pictures)
    if len(entries) > SHOWN:
        notes.append(f"{len(entries) - SHOWN} further cases are in the results file alone.")
    made = [_case(results, entry, addresses.get(place)) for place, entry in enumerate(shown)]
    withheld = pictures is None and any(entry.get("picture").flag() for entry in shown)
    return Cases(cut(found.get("rule").text(), SENTENCE), made, len(entries), notes, withheld)


def _pictures(
    results: Results, panel: str, entries: Sequence[Fields], pictures: Pictures | None
) -> tuple[Mapping[int, Markup], list[str]]:
    """Place among the entries -> address of its picture, and why some have none."""
    if pictures is None:
        return {}, []
    places: dict[Key, list[tuple[int, str]]] = {}
    for place, entry in enumerate(entries):
        if entry.get("picture").flag():
            key = results.level_of(panel, entry).get("folder").text(), entry.get("column").text()
            places.setdefault(key, []).append((place, entry.get("id").text()))
    addresses: dict[int, Markup] = {}
    reasons: dict[str, None] = {}
    for (folder, column), wanted in places.items():
        found, why = pictures.of(folder, column, {id for _, id in wanted})
        addresses |= {place: found[id] for place, id in wanted if id in found}
        if why:
            reasons[f"Some pictures are not shown. {cut(why, SENTENCE)}"] = None
    return addresses, list(reasons)[:3]


def _case(results: Results, entry: Fields, picture: Markup | None) -> Case:
    where = f"{results.quantity(entry.get('column').text())}, seed {entry.get('seed').whole()}"
    if entry.has("draw"):
        where += f", draw {entry.get('draw').whole()}"
    return Case(
        where=where,
        person=cut(entry.get("person").text(), NAME),
        question=cut(entry.get("question").text(), ANSWER),
        gold=cut(entry.get("gold").text(), ANSWER),
        picture=picture,
        answers=[_answer(results, entry, answer) for answer in entry.get("answers").entries()],
    )


def _answer(results: Results, entry: Fields, answer: Fields) -> Answer:
    outcome, paraphrased = answer.get("outcome").text(), answer.get("paraphrased").flag()
    if outcome not in OUTCOMES:
        raise InputRefused(f"{answer.where}: '{cut(outcome, NAME)}' is no outcome", "make it again")
    plain = outcome == "correct" and paraphrased
    return Answer(
        label=results.label(answer.get("row")),
        text=cut(answer.get("text").text(), ANSWER),
        share=_share(results, entry, answer.get("row").text()),
        mark="paraphrased" if plain else outcome,
        said="correct, paraphrased" if plain else OUTCOMES[outcome].name,
        repeated=answer.get("repeated").flag(),
    )


def _share(results: Results, entry: Fields, row: str) -> str:
    summary = results.summary(entry.get("panel").text()).get(row)
    column = entry.get("column").text()
    if summary is None or not summary.has("outcomes") or not summary.get("outcomes").has(column):
        return ""
    return numbers.percent(summary.get("outcomes").get(column).get("correct").share())
