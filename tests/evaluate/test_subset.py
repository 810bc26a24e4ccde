"""A quick look: as many items as asked for, spread over the people, the same every time."""

from __future__ import annotations

from collections import Counter

from mmsurgery.data.samples import Item
from mmsurgery.evaluate.subset import stratified


def asked(**people: int) -> list[Item]:
    return [
        Item(f"{person}/{n}", person, "q", column="c", gold="A", options={"A": "x"})
        for person, count in people.items()
        for n in range(count)
    ]


def test_every_person_before_a_second_of_anybody() -> None:
    items = asked(a=5, b=5, c=1, d=5)
    assert {i.person for i in stratified(items, 4)} == set("abcd")
    counts = Counter(i.person for i in stratified(items, 9))
    assert counts["c"] == 1
    assert sorted(counts[p] for p in "abd") == [2, 3, 3]


def test_order_kept_and_nothing_twice() -> None:
    items = asked(a=5, b=5)
    found = stratified(items, 7)
    assert len(found) == len({i.id for i in found}) == 7
    assert [items.index(i) for i in found] == sorted(items.index(i) for i in found)
    assert stratified(items, 100) == items
    assert stratified([], 3) == []


def test_the_draw_depends_on_the_seed_alone() -> None:
    items = asked(a=20, b=20)
    assert stratified(items, 6) == stratified(items, 6)
    assert {i.id for i in stratified(items[::-1], 6)} == {i.id for i in stratified(items, 6)}
    assert stratified(items, 6, seed=1) != stratified(items, 6)
    assert [i.id for i in stratified(items, 6)] != [i.id for i in items[:3] + items[20:23]]
