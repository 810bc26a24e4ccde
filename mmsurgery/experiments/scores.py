"""Item scores of several levels, and what they say together.

A quantity is a column, or `utility`: the mean of what must be kept. Per level it is a vector of values `[N]`
whose mean is the quantity, with the person each value is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.evaluate.statistics import Matched, matched

UTILITY = ("forget_qa", "retain_vqa", "retain_qa", "realworld_vqa", "realworld_qa")
"""Columns whose mean is the utility; those of them that the benchmark has."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Correct = Mapping[str, Floats]
"""Column -> 1 for a right answer, 0 for a wrong one `[N]`; between two points of a curve also between."""


@dataclass(frozen=True)
class Values:
    """A quantity on one level."""

    values: Floats
    """`[N]`; their mean is the quantity."""
    people: Sequence[str]
    """Whom each value is about `[N]`."""

    @property
    def mean(self) -> float:
        return float(self.values.mean())


def quantity(name: str, correct: Correct, people: Mapping[str, Sequence[str]]) -> Values:
    """The values of a column or of `utility` on one level.

    Args:
        people: column -> whom its items are about.
    """
    if name != "utility":
        return Values(correct[name], people[name])
    columns = [column for column in UTILITY if column in correct]
    total = sum(len(correct[column]) for column in columns)
    # every column weighs the same, however many items it has
    parts = [correct[column] * (total / (len(columns) * len(correct[column]))) for column in columns]
    return Values(np.concatenate(parts), [person for column in columns for person in people[column]])


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
        sizes: column -> number of items.
    """
    points = []
    for entry in evaluations:
        correct = {}
        for column, text in entry["correct"].items():
            packed = np.frombuffer(bytes.fromhex(text), np.uint8)
            correct[column] = np.unpackbits(packed, bitorder="little", count=sizes[column]).astype(np.float64)
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
