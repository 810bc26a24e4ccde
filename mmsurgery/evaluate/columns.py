"""From scored items to the numbers of a column, and what a reader of them must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmsurgery.errors import Mismatch
from mmsurgery.evaluate.scoring import PROTOCOL, ItemScore
from mmsurgery.evaluate.statistics import Paired, clustered_interval, constant_answer, paired_difference

SEED = 0
"""Of the bootstrap and of the sign flips."""


def summary(scores: Sequence[ItemScore]) -> dict[str, Any]:
    """`{protocol, n, correct, accuracy, chance, ci95: [low, high]}` of one column.

    Accuracies are in 0-1. `chance` is the mean over items of 1 / number of options; `ci95` a bootstrap
    interval clustered by person (see `statistics.clustered_interval`).

    Raises:
        UnusableData: if there are no items.
    """
    interval = clustered_interval([item.correct for item in scores], [item.person for item in scores], seed=SEED)
    correct = sum(item.correct for item in scores)
    return {
        "protocol": PROTOCOL,
        "n": len(scores),
        "correct": correct,
        "accuracy": correct / len(scores),
        "chance": sum(1 / len(item.options) for item in scores) / len(scores),
        "ci95": list(interval),
    }


def remarks(scores: Sequence[ItemScore]) -> list[str]:
    """What makes a column's accuracy mean less than it seems to: one letter for everything, ties, one person."""
    found = []
    letter = constant_answer([item.predicted for item in scores], [item.gold for item in scores])
    if letter is not None:
        found.append(f"answers {letter} to all {len(scores)} items: the model has collapsed")
    ties = sum(item.tied for item in scores)
    if ties:
        found.append(f"{ties} ties between options; the first was taken")
    if len({item.person for item in scores}) == 1:
        found.append("all items are about one person: no interval can be given")
    return found


def compare(first: Sequence[ItemScore], second: Sequence[ItemScore]) -> Paired:
    """Accuracy of the first model minus that of the second, paired by item and clustered by person.

    Raises:
        Mismatch: if they were not asked the same items.
        UnusableData: if there are none.
    """
    others = {item.id: item for item in second}
    if len(others) != len(second) or sorted(item.id for item in first) != sorted(others):
        raise Mismatch(f"the two models were scored on different items ({len(first)} and {len(second)})")
    changed = [item.id for item in first if others[item.id].prompt_sha256 != item.prompt_sha256]
    if changed:
        raise Mismatch(f"{len(changed)} items had other prompts, such as {changed[0]}", "score both models again")
    right = [float(others[item.id].correct) for item in first]
    return paired_difference([float(i.correct) for i in first], right, [i.person for i in first], seed=SEED)
