"""When a run counts as collapsed: it no longer answers what it should have kept.

Without open answers only a column at chance can tell, which alone is called that (`figures.looks.fallen`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmsurgery.data.benchmark import COLUMN_LABELS, UTILITY
from mmsurgery.evaluate.statistics import MARGIN

Outcomes = Mapping[str, Mapping[str, int]] | None
GIBBERISH = 0.2
"""Share of open answers in a kept column from which on a model is no longer one that answers."""


@dataclass(frozen=True)
class Collapse:
    """Why a run counts as collapsed."""

    reason: str
    """The worst column, and how many are over a limit."""
    severity: float
    """Of that column: the share of its open answers that is gibberish, 1 where it is at chance."""


def collapsed(
    before: Mapping[str, float],
    after: Mapping[str, float],
    chances: Mapping[str, float],
    said_before: Outcomes,
    said: Outcomes,
) -> Collapse | None:
    """Why a run counts as collapsed, or None.

    A column that must be kept is at chance (within 5 points of guessing), or more than 20 % of its open answers are
    gibberish, and neither was so of vanilla.

    Args:
        before, after: accuracy of vanilla and of the run by column, 0-1.
        chances: what guessing gives, by column.
        said_before, said: counts of their open answers by column, where there are some.
    """
    over: list[Collapse] = []
    kept = [column for column in UTILITY if column in after]
    for column in kept:
        label, limit = COLUMN_LABELS[column], chances[column] + MARGIN
        if after[column] <= limit < before[column]:
            over.append(Collapse(f"{label} is at chance", 1.0))
            continue
        share = _gibberish(said, column)
        if share > GIBBERISH >= _gibberish(said_before, column):
            over.append(Collapse(f"{label}: {100 * share:.1f} % of the answers are gibberish", share))
    if not over:
        return None
    worst = max(over, key=lambda each: each.severity)
    return Collapse(f"{worst.reason} ({len(over)} of {len(kept)} columns over a limit)", worst.severity)


def _gibberish(outcomes: Outcomes, column: str) -> float:
    counts = (outcomes or {}).get(column)
    return counts["gibberish"] / counts["n"] if counts else 0.0
