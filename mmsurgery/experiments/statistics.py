"""Uncertainty over levels: vanilla models are drawn too, and within each the people.

The levels of a grid share the people that nobody forgets, and celebrities; intervals here take them for
independent, and with few levels they are rough. That is why the number of levels stands beside each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.evaluate.statistics import RESAMPLES, percentiles, sign_flips
from mmsurgery.experiments.scores import Values

Floats = np.ndarray[Any, np.dtype[np.float64]]


def interval(levels: Sequence[Values], *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over L levels of a quantity: levels are drawn with replacement, and
    within each draw the people (2000 resamples; hierarchical bootstrap, Davison and Hinkley 1997, 3.8).

    People are drawn among those with items in the same columns, so that every column keeps its size.
    (0, 1) where one level holds one person: nothing is known about others.
    """
    clusters = [_Clusters.of(level) for level in levels]
    if len(levels) == 1 and clusters[0].people == 1:
        return 0.0, 1.0
    return percentiles(_resampled(clusters, seed))


@dataclass(frozen=True)
class Comparison:
    """How two rows differ on the same items of the same levels."""

    difference: float
    """Mean over levels of first - second."""
    ci95: tuple[float, float]
    p_value: float
    """Two-sided, of a sign-flip permutation test over the people of all levels."""
    same_sign: int
    """Levels whose difference has the sign of the mean."""
    levels: int
    people: int


def compare(first: Sequence[Values], second: Sequence[Values], *, seed: int = 0) -> Comparison:
    """Compare two rows level by level, paired by item.

    Args:
        first, second: the rows' values on the same levels, items in the same order.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    clusters = [_Clusters.of(level) for level in differences]
    # each level and column weighs the same, however many items it has
    shares = np.concatenate([(level.sums / level.counts.sum(0)).mean(1) / len(clusters) for level in clusters])
    means = np.array([level.mean for level in differences])
    total = float(means.mean())
    return Comparison(
        difference=total,
        ci95=(-1.0, 1.0) if len(shares) == 1 else percentiles(_resampled(clusters, seed)),
        p_value=sign_flips(shares, seed),
        same_sign=int((np.sign(means) == np.sign(total)).sum()),
        levels=len(clusters),
        people=len(shares),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class _Clusters:
    """The items of one level by person and column, P people, C columns."""

    sums: Floats
    """`[P, C]`."""
    counts: Floats
    """`[P, C]`."""

    @classmethod
    def of(cls, values: Values) -> _Clusters:
        names = sorted({person for people in values.people for person in people})
        place = {name: row for row, name in enumerate(names)}
        sums, counts = (np.zeros((len(names), len(values.columns))) for _ in range(2))
        for column, (items, people) in enumerate(zip(values.columns, values.people, strict=True)):
            rows = [place[person] for person in people]
            sums[:, column] = np.bincount(rows, weights=items, minlength=len(names))
            counts[:, column] = np.bincount(rows, minlength=len(names))
        return cls(sums, counts)

    @property
    def people(self) -> int:
        return len(self.sums)

    def resampled(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """The quantity over people drawn with replacement, of the given shape."""
        drawn = np.empty((*shape, self.people))
        kinds, kind = np.unique(self.counts > 0, axis=0, return_inverse=True)
        for number in range(len(kinds)):
            members = np.flatnonzero(kind.reshape(-1) == number)
            even = np.full(len(members), 1 / len(members))
            drawn[..., members] = rng.multinomial(len(members), even, size=shape)
        found: Floats = ((drawn @ self.sums) / (drawn @ self.counts)).mean(-1)
        return found


def _resampled(clusters: Sequence[_Clusters], seed: int) -> Floats:
    """Means over L drawn levels of the quantity over their drawn people `[RESAMPLES]`."""
    rng, size = np.random.default_rng(seed), len(clusters)
    chosen = rng.integers(size, size=(RESAMPLES, size))
    values = np.stack([level.resampled(rng, (RESAMPLES, size)) for level in clusters], axis=-1)
    result: Floats = np.take_along_axis(values, chosen[:, :, None], axis=2)[:, :, 0].mean(axis=1)
    return result
