"""Item scores of several levels, and what they say together.

A quantity is a column, or `utility`: the mean of the columns that must be kept, which all weigh the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.data.benchmark import UTILITY
from mmsurgery.evaluate.statistics import Matched, matched
from mmsurgery.experiments.resampling import Asked

Floats = np.ndarray[Any, np.dtype[np.float64]]
Correct = Mapping[str, Floats]
"""Column -> 1 for a right answer, 0 for a wrong one `[N]`; between two points of a curve also between."""


@dataclass(frozen=True)
class Values:
    """A quantity on one level: for each run the mean over its columns of their means."""

    asked: Asked
    names: tuple[str, ...]
    """Its columns."""
    runs: Mapping[int, tuple[Floats, ...]]
    """Unlearning seed -> one vector `[N]` per column; a model from before unlearning is one run."""

    @property
    def mean(self) -> float:
        """Mean over runs."""
        return float(np.mean([np.mean([values.mean() for values in columns]) for columns in self.runs.values()]))

    @property
    def n(self) -> int:
        """Number of items; each is one, however many runs were asked it."""
        return sum(len(self.asked.people[name]) for name in self.names)

    def __sub__(self, other: Values) -> Values | None:
        """Item by item and run by run, on the runs that both have; None where they share none."""
        shared = [seed for seed in self.runs if seed in other.runs]
        runs = {
            seed: tuple(one - two for one, two in zip(self.runs[seed], other.runs[seed], strict=True))
            for seed in shared
        }
        return Values(self.asked, self.names, runs) if runs else None


def quantity(name: str, runs: Mapping[int, Correct], asked: Asked) -> Values:
    """The values of a column or of `utility` on one level."""
    names = tuple(column for column in UTILITY if column in asked.people) if name == "utility" else (name,)
    return Values(asked, names, {seed: tuple(correct[each] for each in names) for seed, correct in runs.items()})


def accuracies(correct: Correct) -> dict[str, float]:
    """Accuracy by column, 0-1."""
    return {column: float(values.mean()) for column, values in correct.items()}


def utility(columns: Mapping[str, float]) -> float:
    """Mean of the columns that must be kept, 0-1."""
    kept = [columns[column] for column in UTILITY if column in columns]
    return sum(kept) / len(kept)


@dataclass(frozen=True)
class Point:
    """A run at a step."""

    step: float
    correct: Correct


def unpack(
    evaluations: Sequence[Mapping[str, Any]], sizes: Mapping[str, int], kept: Mapping[str, Any] | None = None
) -> list[Point]:
    """The points of a run from its record's evaluations, whose item scores are packed bits in hexadecimal.

    Args:
        sizes: column -> number of items, of the columns that are asked for.
        kept: column -> places of the items that are looked at; all where None.
    """
    points = []
    for entry in evaluations:
        correct = {}
        for column, size in sizes.items():
            packed = np.frombuffer(bytes.fromhex(entry["correct"][column]), np.uint8)
            bits = np.unpackbits(packed, bitorder="little", count=size).astype(np.float64)
            correct[column] = bits if kept is None else bits[kept[column]]
        points.append(Point(float(entry["step"]), correct))
    return points


def at_matched_forgetting(curve: Sequence[Point], target: float) -> Point | None:
    """The run where Forget VQA first falls to the target, items interpolated linearly between two points.

    Returns:
        None where the target is not reached.
    """
    found: Matched | None = matched([(point.step, accuracies(point.correct)) for point in curve], target)
    if found is None:
        return None
    after = next(i for i, point in enumerate(curve) if point.step >= found.step)
    if not after:
        return curve[0]
    upper, lower = curve[after - 1], curve[after]
    share = (found.step - upper.step) / (lower.step - upper.step)
    between = {c: upper.correct[c] + share * (lower.correct[c] - upper.correct[c]) for c in lower.correct}
    return Point(found.step, between)
