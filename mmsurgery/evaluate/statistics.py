"""Uncertainty and comparison of scores. People are the clusters: their questions are not independent.

Pure functions of NumPy arrays; N items, P people. Accuracies and differences are in 0-1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.errors import UnusableData, UsageError

RESAMPLES = 2000
FLIPS = 9999
"""Random sign flips of the permutation test where the people are too many to try all."""
EXHAUSTIVE = 13
"""Up to this many people all 2^P sign flips are tried."""
LEVEL = 0.05
MARGIN = 0.05
"""Matched forgetting stops this far above the gold model (or chance): 5 points."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


def clustered_interval(values: Sequence[float], people: Sequence[str], *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values` `[N]`, resampling whole people.

    Percentiles of 2000 means, each over P people drawn with replacement. One person alone says
    nothing about others: the interval is then (0, 1).

    Raises:
        UnusableData: if there are no values.
    """
    sums, counts = _by_person(values, people)
    if len(sums) == 1:
        return 0.0, 1.0
    return percentiles(_resampled(sums, counts, seed))


@dataclass(frozen=True)
class Paired:
    """How two models differ on the same items."""

    difference: float
    """Mean of first - second."""
    ci95: tuple[float, float]
    """Bootstrap interval, resampling people; (-1, 1) for one person."""
    p_value: float
    """Two-sided, of a sign-flip permutation test over people."""
    people: int

    @property
    def resolved(self) -> bool:
        """Whether these items can tell the models apart at the 5 % level, by interval and by test."""
        return self.p_value < LEVEL and not self.ci95[0] <= 0 <= self.ci95[1]


def paired_difference(
    first: Sequence[float], second: Sequence[float], people: Sequence[str], *, seed: int = 0
) -> Paired:
    """Compare two scores `[N]` of the same items, clustered by person.

    The test flips the sign of each person's summed difference: all 2^P flips for up to 13 people
    (so p is at least 2 / 2^P), else 9999 random ones plus the observed one.

    Raises:
        UnusableData: if there are no items.
    """
    sums, counts = _by_person(np.subtract(first, second), people)
    p_value = sign_flips(sums, seed)
    interval = percentiles(_resampled(sums, counts, seed)) if len(sums) > 1 else (-1.0, 1.0)
    return Paired(float(sums.sum() / counts.sum()), interval, p_value, len(sums))


def sign_flips(sums: Floats, seed: int = 0) -> float:
    """Two-sided p value of a permutation test: flip the sign of each person's summed difference `[P]`.

    All 2^P flips for up to 13 people, else 9999 random ones plus the observed one.
    """
    if len(sums) <= EXHAUSTIVE:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums))))
    else:
        rng = np.random.default_rng(seed)
        signs = np.concatenate([np.ones((1, len(sums))), rng.choice((1.0, -1.0), (FLIPS, len(sums)))])
    observed, flipped = abs(sums.sum()), np.abs(signs @ sums)
    # a flip that equals the observed sum may differ from it by rounding
    return float((flipped >= observed * (1 - 1e-12)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def constant_answer(predicted: Sequence[str], gold: Sequence[str]) -> str | None:
    """The one answer that a model gives to everything although the right answers differ, else None."""
    return predicted[0] if len(set(predicted)) == 1 and len(set(gold)) > 1 else None


@dataclass(frozen=True)
class Matched:
    """Where along a run a column first falls to its target, and the columns there."""

    step: float
    columns: dict[str, float]


def forgetting_target(*, gold: float | None, chance: float) -> float:
    """Forget VQA at which methods are compared: 5 points above the gold model, or above chance without one."""
    return min(1.0, (chance if gold is None else gold) + MARGIN)


def matched(
    curve: Sequence[tuple[float, Mapping[str, float]]], target: float, *, column: str = "forget_vqa"
) -> Matched | None:
    """Linear interpolation of a run's curve at the first point where `column` is at or below `target`.

    Args:
        curve: (step, accuracy by column) in order of steps, step 0 first.

    Returns:
        None where the target is not reached.

    Raises:
        UsageError: if a point lacks the column, or the steps do not increase.
    """
    for point, (step, columns) in enumerate(curve):
        if column not in columns:
            raise UsageError(f"the curve has no column '{column}' at step {step}", "name a column that every point has")
        if point and step <= curve[point - 1][0]:
            raise UsageError(
                f"the steps of the curve do not increase at step {step}", "give the points in the order of their steps"
            )
        if columns[column] > target:
            continue
        if not point:
            return Matched(float(step), dict(columns))
        before, upper = curve[point - 1]
        share = (upper[column] - target) / (upper[column] - columns[column])
        shared = [name for name in columns if name in upper]
        between = {name: float(upper[name] + share * (columns[name] - upper[name])) for name in shared}
        return Matched(float(before + share * (step - before)), between)
    return None


def _by_person(values: Sequence[float] | Floats, people: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum and number of values per person `[P]`, people in sorted order."""
    if not len(values):
        raise UnusableData("there are no scored items", "score a column that has items")
    _, person = np.unique(np.asarray(people), return_inverse=True)
    sums = np.bincount(person, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)
    return sums, np.bincount(person).astype(np.float64)


def _resampled(sums: Floats, counts: Floats, seed: int) -> Floats:
    """Means of bootstrap samples of people `[RESAMPLES]`."""
    size = len(sums)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    means: Floats = (drawn @ sums) / (drawn @ counts)
    return means


def percentiles(means: Floats) -> tuple[float, float]:
    low, high = np.percentile(means, (100 * LEVEL / 2, 100 - 100 * LEVEL / 2))
    return float(low), float(high)
