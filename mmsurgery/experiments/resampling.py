"""Who is asked on a level, and bootstrap samples of the questions: people are drawn, and within them their items.

B resamples, N items, P people.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.evaluate.statistics import RESAMPLES

Counts = np.ndarray[Any, np.dtype[np.float32]]
_SEED = 0


@dataclass(frozen=True, eq=False)
class Asked:
    """The items of one level."""

    vanilla: Hashable
    """The vanilla model; levels of the same one are not independent."""
    people: Mapping[str, Sequence[str]]
    """Column -> whom each of its items is about `[N]`."""

    @functools.cached_property
    def drawn(self) -> Mapping[str, Counts]:
        """Column -> how often each item stands in each resample, float32 `[B, N]`.

        People are drawn with replacement among those with items in the same columns, so that every column keeps
        its size, and are the same in all columns; the items of a person that was drawn m times are drawn with
        replacement, m times as many as there are (two-stage bootstrap, Davison and Hinkley 1997, 3.8).
        """
        rng = np.random.default_rng(_SEED)
        places: dict[str, dict[str, list[int]]] = {}
        for column, about in self.people.items():
            for place, person in enumerate(about):
                places.setdefault(person, {}).setdefault(column, []).append(place)
        kinds: dict[tuple[str, ...], list[str]] = {}
        for person in sorted(places):
            kinds.setdefault(tuple(places[person]), []).append(person)
        counts = {column: np.zeros((RESAMPLES, len(about)), np.float32) for column, about in self.people.items()}
        for columns, members in sorted(kinds.items()):
            drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=RESAMPLES)
            for times, person in zip(drawn.T, members, strict=True):
                for column in columns:
                    mine = places[person][column]
                    share = np.full(len(mine), 1 / len(mine))
                    counts[column][:, mine] = rng.multinomial(times * len(mine), share)
        return counts
