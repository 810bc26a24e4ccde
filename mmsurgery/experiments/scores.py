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

Floats = np.ndarray[Any, np.dtype[np.float64]]
Correct = Mapping[str, Floats]
"""Column -> 1 for a right answer, 0 for a wrong one `[N]`; between two points of a curve also between."""


@dataclass(frozen=True)
class Values:
    """A quantity on one level: the mean over its columns of their means."""

    columns: tuple[Floats, ...]
    """One vector `[N]` per column."""
    people: tuple[Sequence[str], ...]
    """Whom each value is about, as `columns`."""

    @property
    def mean(self) -> float:
        return float(np.mean([values.mean() for values in self.columns]))

    @property
    def n(self) -> int:
        """Number of items."""
        return sum(len(values) for values in self.columns)

    def __sub__(self, other: Values) -> Values:
        """Item by item; both are about the same items in the same order."""
        pairs = zip(self.columns, other.columns, strict=True)
        return Values(tuple(one - two for one, two in pairs), self.people)


def quantity(name: str, correct: Correct, people: Mapping[str, Sequence[str]]) -> Values:
    """The values of a column or of `utility` on one level.

    Args:
        people: column -> whom its items are about.
    """
    columns = [column for column in UTILITY if column in correct] if name == "utility" else [name]
    return Values(tuple(correct[column] for column in columns), tuple(people[column] for column in columns))


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


def unpack(evaluations: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> list[Point]:
    """The points of a run from its record's evaluations, whose item scores are packed bits in hexadecimal.

    Args:
        sizes: column -> number of items, of the columns that are asked for.
    """
    points = []
    for entry in evaluations:
        correct = {}
        for column, size in sizes.items():
            packed = np.frombuffer(bytes.fromhex(entry["correct"][column]), np.uint8)
            correct[column] = np.unpackbits(packed, bitorder="little", count=size).astype(np.float64)
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
