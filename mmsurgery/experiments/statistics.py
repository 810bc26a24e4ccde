"""Uncertainty over levels: vanilla models are drawn too, and within each the people.

The levels of a grid share the people that nobody forgets, and celebrities; intervals here take them for
independent, and with few levels they are rough. That is why the number of levels stands beside each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.evaluate.statistics import RESAMPLES, by_person, percentiles, sign_flips
from mmsurgery.experiments.scores import Values

Floats = np.ndarray[Any, np.dtype[np.float64]]


def interval(levels: Sequence[Values], *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over L levels of a quantity: levels are drawn with replacement, and
    within each draw the people (2000 resamples; hierarchical bootstrap, Davison and Hinkley 1997, 3.8).

    (0, 1) where one level holds one person: nothing is known about others.
    """
    clusters = [by_person(level.values, level.people) for level in levels]
    if len(levels) == 1 and len(clusters[0][0]) == 1:
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
    pairs = zip(first, second, strict=True)
    differences = [Values(one.values - other.values, one.people) for one, other in pairs]
    clusters = [by_person(level.values, level.people) for level in differences]
    # each level weighs the same, however many items it has
    sums = np.concatenate([sums / (counts.sum() * len(clusters)) for sums, counts in clusters])
    means = np.array([level.mean for level in differences])
    total = float(means.mean())
    alone = len(sums) == 1
    return Comparison(
        difference=total,
        ci95=(-1.0, 1.0) if alone else percentiles(_resampled(clusters, seed)),
        p_value=sign_flips(sums, seed),
        same_sign=int((np.sign(means) == np.sign(total)).sum()),
        levels=len(clusters),
        people=len(sums),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _resampled(clusters: Sequence[tuple[Floats, Floats]], seed: int) -> Floats:
    """Means over L drawn levels of means over their drawn people `[RESAMPLES]`."""
    rng, size = np.random.default_rng(seed), len(clusters)
    drawn = rng.integers(size, size=(RESAMPLES, size))
    means = np.empty((RESAMPLES, size, size))
    for place, (sums, counts) in enumerate(clusters):
        people = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=(RESAMPLES, size))
        means[:, :, place] = (people @ sums) / (people @ counts)
    chosen = np.take_along_axis(means, drawn[:, :, None], axis=2)[:, :, 0]
    result: Floats = chosen.mean(axis=1)
    return result
