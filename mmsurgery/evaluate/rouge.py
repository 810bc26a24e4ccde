"""ROUGE-L of open answers (Eq. 10-12), as the rouge-score package computes it, with stemming."""

from __future__ import annotations

from typing import NamedTuple


class RougeL(NamedTuple):
    """Shares in 0-1 of the longest common subsequence of words."""

    f1: float
    """0 where nothing is shared."""
    recall: float
    """Of the gold words."""


def rouge_l(gold: str, answer: str) -> RougeL:
    """Compare an answer with the gold text, words lower-cased and stemmed."""
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(["rougeL"], use_stemmer=True).score(gold, answer)["rougeL"]
    return RougeL(float(found.fmeasure), float(found.recall))
