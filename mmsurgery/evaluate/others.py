"""What is known of other people: facts that would answer the same question about somebody else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from mmsurgery.data.leakage import normalised
from mmsurgery.data.samples import Item
from mmsurgery.evaluate.outcomes import facts


class Others:
    """The facts of everybody in a benchmark's columns, and what each kind of question asks for.

    A fact of another person's is the gold fact of a question about them, in whichever column: whether an answer is
    another person's does not depend on who else is in the item's column, nor on how they were asked. Of these, such as
    answer the same kind of question count: those that are an option of some question of the kind. Two questions are of
    one kind if they have the same words without the person's name: without the words that stand in every question about
    that person in that column (of two or more), and in questions about at most half of all people. Where nobody else is
    asked a question of the kind, the gold facts of the other people of the item's column count, and its own wrong
    options.
    """

    def __init__(self, columns: Mapping[str, Sequence[Item]]) -> None:
        """
        Args:
            columns: all items with options, not only those of a subset.
        """
        self._names = _names(columns)
        self._people: dict[str, set[str]] = defaultdict(set)
        """Fact -> whose gold it is."""
        self._columns: dict[str, set[str]] = defaultdict(set)
        """Column -> gold facts."""
        self._asked: dict[str, set[str]] = defaultdict(set)
        """Kind -> people who are asked about."""
        self._kinds: dict[str, set[str]] = defaultdict(set)
        """Kind -> facts of all options."""
        for column, items in columns.items():
            for item in items:
                options, kind = facts(item.options or {}), self._kind(item)
                self._people[options[item.gold]].add(item.person)
                self._columns[column].add(options[item.gold])
                self._asked[kind].add(item.person)
                self._kinds[kind].update(options.values())

    def said(self, item: Item, text: str) -> str | None:
        """The fact of another person that an answer to an item says: the longest, of equally long ones the first;
        None if there is none. What is true of the item's own person too, and what the question says itself, is no other
        person's."""
        kind = self._kind(item)
        alone = self._asked[kind] <= {item.person}
        wanted = self._columns[item.column].union(facts(item.options or {}).values()) if alone else self._kinds[kind]
        asked, words = f" {normalised(item.question)} ", normalised(text).split()
        for length in range(len(words), 0, -1):
            for place in range(len(words) - length + 1):
                fact = " ".join(words[place : place + length])
                people = self._people.get(fact, set()) if fact in wanted else set()
                if people and item.person not in people and f" {fact} " not in asked:
                    return fact
        return None

    def _kind(self, item: Item) -> str:
        own = self._names.get((item.column, item.person), frozenset())
        return " ".join(word for word in normalised(item.question).split() if word not in own)


def _names(columns: Mapping[str, Sequence[Item]]) -> dict[tuple[str, str], frozenset[str]]:
    """(column, person) -> the words that name them in the column's questions."""
    asked: dict[tuple[str, str], set[frozenset[str]]] = defaultdict(set)
    people: dict[str, set[str]] = defaultdict(set)
    for column, items in columns.items():
        for item in items:
            words = frozenset(normalised(item.question).split())
            asked[column, item.person].add(words)
            for word in words:
                people[word].add(item.person)
    half = len({person for _, person in asked}) / 2
    return {
        key: frozenset(word for word in frozenset.intersection(*questions) if len(people[word]) <= half)
        for key, questions in asked.items()
        if len(questions) > 1
    }
