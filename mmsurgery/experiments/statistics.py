"""Uncertainty over a grid: vanilla models, draws and unlearning seeds are drawn, and within them people and items.

The levels of a grid share the people that nobody forgets, and celebrities; intervals here take different vanilla
models for independent, and with few of them they are rough. That is why their number stands beside each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.evaluate.statistics import LEVEL, RESAMPLES, percentiles, sign_flips
from mmsurgery.experiments.scores import Values

Floats = np.ndarray[Any, np.dtype[np.float64]]
_APART = 61
"""Resamples between those of two places that draw the same level: coprime to their number, so never the same people."""


def mean(levels: Sequence[Values]) -> float:
    """Mean over vanilla models of the mean over their levels: each vanilla model weighs the same."""
    return float(np.mean([np.mean([level.mean for level in levels]) for levels in _by_vanilla(levels)]))


def interval(levels: Sequence[Values], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of `mean` by hierarchical bootstrap (2000 resamples; Davison and Hinkley 1997, 3.8): vanilla
    models, the levels of each, unlearning seeds, people and their items are drawn with replacement.

    (0, 1) where one level holds one person: nothing is known about others. Where every item is right, or every one
    wrong, resamples are all alike and say nothing: the other end is then that of Clopper and Pearson (1934), as of
    independent items.
    """
    if len(levels) == 1 and len(_people(levels)) == 1:
        return 0.0, 1.0
    found = {value for level in levels for run in level.runs.values() for column in run for value in np.unique(column)}
    if found in ({0.0}, {1.0}):
        bound = float((LEVEL / 2) ** (1 / sum(level.n for level in levels)))
        return (bound, 1.0) if found == {1.0} else (0.0, 1 - bound)
    return percentiles(_resampled(levels, seed))


@dataclass(frozen=True)
class Comparison:
    """How two rows differ on the same items of the same runs."""

    difference: float
    """Mean over vanilla models of first - second."""
    ci95: tuple[float, float]
    p_value: float
    """Two-sided, of a sign-flip permutation test over the people of all vanilla models."""
    same_sign: int
    """Vanilla models whose difference has the sign of the mean."""
    levels: int
    """Vanilla models."""
    people: int
    n: int
    """Items of all levels."""


def compare(first: Sequence[Values], second: Sequence[Values], *, seed: int = 0) -> Comparison | None:
    """Compare two rows level by level, paired by run and item; None where they share no run.

    Args:
        first, second: the rows' values on the same levels.
    """
    paired = [one - other for one, other in zip(first, second, strict=True)]
    differences = [each for each in paired if each is not None]
    if not differences:
        return None
    total = mean(differences)
    shares = _people(differences)
    means = [np.mean([level.mean for level in levels]) for levels in _by_vanilla(differences)]
    return Comparison(
        difference=total,
        ci95=(-1.0, 1.0) if len(shares) == 1 else percentiles(_resampled(differences, seed)),
        p_value=sign_flips(shares, seed),
        same_sign=int((np.sign(means) == np.sign(total)).sum()),
        levels=len(means),
        people=len(shares),
        n=sum(level.n for level in differences),
    )


def resolvable(people: int, rows: int) -> bool:
    """Whether sign flips of so many people can give a p below 0.05 after adjustment for so many rows: of the 2^P
    flips two are as far out as people who all differ in one sense."""
    return 2.0 ** (1 - people) * rows < LEVEL


def _by_vanilla(levels: Sequence[Values]) -> list[list[Values]]:
    found: dict[object, list[Values]] = {}
    for level in levels:
        found.setdefault(level.asked.vanilla, []).append(level)
    return list(found.values())


def _people(levels: Sequence[Values]) -> Floats:
    """What each person of each vanilla model adds to `mean` `[P]`: levels, runs and columns weigh the same, however
    many items they have."""
    groups = _by_vanilla(levels)
    found: dict[tuple[int, str], float] = {}
    for number, group in enumerate(groups):
        for level in group:
            for place, column in enumerate(level.names):
                values = np.mean([columns[place] for columns in level.runs.values()], axis=0)
                each = values / (len(values) * len(level.names) * len(group) * len(groups))
                for person, share in zip(level.asked.people[column], each.tolist(), strict=True):
                    found[number, person] = found.get((number, person), 0.0) + share
    return np.array(list(found.values()))


def _resampled(levels: Sequence[Values], seed: int) -> Floats:
    """`mean` over what was drawn `[RESAMPLES]`."""
    rng = np.random.default_rng(seed)
    groups = [[_runs(level) for level in group] for group in _by_vanilla(levels)]
    total, every = np.zeros(RESAMPLES), np.arange(RESAMPLES)
    for slot in range(len(groups)):
        chosen = rng.integers(len(groups), size=RESAMPLES)
        for number, group in enumerate(groups):
            mine = every[chosen == number]
            for place in range(len(group)):
                level = rng.integers(len(group), size=len(mine))
                people = (mine + _APART * (slot * len(group) + place)) % RESAMPLES
                for member, runs in enumerate(group):
                    here = level == member
                    drawn = rng.integers(runs.shape[1], size=(int(here.sum()), runs.shape[1]))
                    values = runs[people[here][:, None], drawn].mean(1)
                    total[mine[here]] += values / (len(group) * len(groups))
    return total


def _runs(level: Values) -> Floats:
    """The quantity of each run over each resample of people and items `[RESAMPLES, runs]`."""
    found = np.zeros((RESAMPLES, len(level.runs)))
    for place, column in enumerate(level.names):
        values = np.stack([columns[place] for columns in level.runs.values()], axis=1)
        drawn = level.asked.drawn[column].astype(np.float64)
        found += drawn @ values / drawn.sum(1, keepdims=True) / len(level.names)
    return found
