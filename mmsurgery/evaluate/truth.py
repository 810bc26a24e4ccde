"""CLEAR's own metrics, from the likelihood of a true answer, its paraphrase and wrong answers.

P(a) = exp of the mean log-probability per token of an answer, its end token included. As CLEAR's tables (and TOFU's,
whose ratio is the inverse), with the wrong answers' mean taken per row, where the original's multimodal code takes it
over all rows.

    probability   P(true) of captions; P(true) / (P(true) + sum of P(wrong)) of names and answers
    ratio R       P(paraphrase, else true) / geometric mean of P(wrong)
    truth ratio   of forget columns mean min(R, 1 / R); of others mean max(0, 1 - 1 / R)
    metrics       Real, Retain, Forget: harmonic means of probability and truth ratio of two columns each;
                  Forget Quality: 1 - Jensen-Shannon distance (natural logarithm) of the ratios of model and gold
                  model over the forget columns, each normalised to sum 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmsurgery.errors import Mismatch
from mmsurgery.evaluate.scoring import ItemScore

TASK = "truth"
METRICS = {
    "real": ("realface_vqa", "realworld_vqa"),
    "retain": ("retain_caption", "retain_vqa"),
    "forget": ("forget_caption", "forget_vqa"),
}
"""Metric -> the columns whose probability and truth ratio it averages."""


def is_truth(item: ItemScore) -> bool:
    return item.column.endswith(f".{TASK}")


def probability(item: ItemScore) -> float:
    """In 0-1, see the module."""
    true = math.exp(item.options["true"])
    if item.column.removesuffix(f".{TASK}").endswith("_caption"):
        return true
    return true / (true + sum(math.exp(score) for score in _wrong(item)))


def ratio(item: ItemScore) -> float:
    """R, 0 or more."""
    wrong = _wrong(item)
    return math.exp(item.options.get("paraphrase", item.options["true"]) - sum(wrong) / len(wrong))


def means(items: Sequence[ItemScore]) -> dict[str, float]:
    """`probability` and `truth_ratio` of one column."""
    forget = items[0].column.startswith("forget_")
    ratios = [ratio(item) for item in items]
    # a ratio of 0 is a sure lie: 1 / R is infinite
    inverse = [1 / each if each else math.inf for each in ratios]
    truths = [min(r, i) if forget else max(0.0, 1 - i) for r, i in zip(ratios, inverse, strict=True)]
    return {
        "probability": sum(map(probability, items)) / len(items),
        "truth_ratio": sum(truths) / len(items),
    }


def metrics(
    columns: Mapping[str, Mapping[str, Any]],
    items: Mapping[str, Sequence[ItemScore]],
    gold: Mapping[str, Sequence[ItemScore]] | None,
) -> dict[str, float | None]:
    """Real, Retain, Forget metric and Forget Quality; None where a column, or for the last the gold model, is missing.

    Args:
        columns: a model's record, `COLUMN.truth` -> summary.
        items: the model's scored items, by column; `gold`: the gold model's.

    Raises:
        Mismatch: if the gold model was asked other items.
    """
    found: dict[str, float | None] = {}
    for name, pair in METRICS.items():
        summaries = [columns.get(f"{column}.{TASK}") for column in pair]
        values = [s[key] for s in summaries if s is not None for key in ("probability", "truth_ratio")]
        found[name] = _harmonic(values) if len(values) == 2 * len(pair) else None
    found["forget_quality"] = None
    wanted = [name for column in METRICS["forget"] if (name := f"{column}.{TASK}") in items]
    if gold is not None and wanted and all(name in gold for name in wanted):
        ours, theirs = ([item for name in wanted for item in each[name]] for each in (items, gold))
        if [item.id for item in ours] != [item.id for item in theirs]:
            raise Mismatch("the gold model was asked other items", "mmsurgery eval gold --force")
        found["forget_quality"] = 1 - _distance([ratio(item) for item in ours], [ratio(item) for item in theirs])
    return found


def _wrong(item: ItemScore) -> list[float]:
    return [score for name, score in item.options.items() if name.startswith("wrong")]


def _harmonic(values: Sequence[float]) -> float:
    return len(values) / sum(1 / value for value in values) if all(values) else 0.0


def _distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Jensen-Shannon distance of two lists of numbers, each normalised to sum 1."""
    p, q = ([value / sum(each) for value in each] for each in (left, right))

    def half(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(x * math.log(2 * x / (x + y)) for x, y in zip(a, b, strict=True) if x)

    return math.sqrt(max(0.0, (half(p, q) + half(q, p)) / 2))
