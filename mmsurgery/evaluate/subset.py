"""A quick look: some of a column's items, spread evenly over its people."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmsurgery.data.samples import Item


def stratified(items: Sequence[Item], size: int, *, seed: int = 0) -> list[Item]:
    """At most `size` items in their order: one of every person, then a second of every person, and so on; which of
    a person's, and which people where not all can have one more, is drawn by the seed."""
    by_person: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        by_person.setdefault(item.person, []).append(place)

    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}/{text}".encode()).digest()

    queues = [
        sorted(by_person[person], key=lambda place: drawn(items[place].id)) for person in sorted(by_person, key=drawn)
    ]
    rounds = max(map(len, queues), default=0)
    order = [queue[turn] for turn in range(rounds) for queue in queues if turn < len(queue)]
    return [items[place] for place in sorted(order[:size])]
