"""When a run counts as collapsed: it no longer answers what it should have kept."""

from __future__ import annotations

from collections.abc import Mapping

from mmsurgery.data.benchmark import COLUMN_LABELS, UTILITY
from mmsurgery.evaluate.statistics import MARGIN

GIBBERISH = 0.2
"""Share of open answers in a kept column from which on a model is no longer one that answers."""


def collapsed(
    before: Mapping[str, float],
    after: Mapping[str, float],
    chances: Mapping[str, float],
    outcomes: Mapping[str, Mapping[str, int]] | None,
) -> str | None:
    """Why a run counts as collapsed, or None.

    A column that must be kept is at chance (within 5 points of guessing, where vanilla was not), or more than 20 %
    of its open answers are gibberish.

    Args:
        before, after: accuracy of vanilla and of the run by column, 0-1.
        chances: what guessing gives, by column.
        outcomes: counts of the run's open answers by column, where there are some.
    """
    for column in UTILITY:
        if column not in after:
            continue
        label, limit = COLUMN_LABELS[column], chances[column] + MARGIN
        if after[column] <= limit < before[column]:
            return f"{label} is at chance"
        counts = (outcomes or {}).get(column)
        if counts and counts["gibberish"] > GIBBERISH * counts["n"]:
            return f"{label}: {100 * counts['gibberish'] / counts['n']:.0f} % of the answers are gibberish"
    return None
