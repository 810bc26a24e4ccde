"""From scored items to the numbers of a column, and what a reader of them must know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmsurgery.errors import Mismatch
from mmsurgery.evaluate import truth
from mmsurgery.evaluate.official import Answer
from mmsurgery.evaluate.open_answers import Answered
from mmsurgery.evaluate.outcomes import OUTCOMES, outcome_counts
from mmsurgery.evaluate.protocols import LIKELIHOOD
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.evaluate.statistics import Paired, clustered_interval, constant_answer, paired_difference

FEW = 5
"""With fewer people the bootstrap has too few to draw from."""
SEED = 0
"""Of the bootstrap and of the sign flips."""


Scores = Sequence[ItemScore] | Sequence[Answer] | Sequence[Answered]


def summary(scores: Scores, protocol: str = LIKELIHOOD) -> dict[str, Any]:
    """The numbers of one column, all items of one task and protocol; shares are in 0-1.

    likelihood                 `{protocol, n, correct, accuracy, chance, ci95: [low, high]}`
    likelihood, truth          `{protocol, n, probability, truth_ratio, ci95}`, means (see `truth`); the interval is
                               the probability's
    official, classification   `unparsed` beside: how many answers name no option (they count as wrong)
    official, cloze            `chance` is null; `whole_words` beside: the accuracy where the gold text must
                               stand in the answer as whole words
    official, generation       `{protocol, n, rouge_l: {f1, recall}, ci95}`, means; the interval is F1's
    open                       `chance` is null; `outcomes` beside: how many answers are what (see `outcomes`), and
                               `paraphrased` and `repeated`, how many of them are

    Of all of `official` and `open` also `distinct`: how many different answers were written.

    `chance` is the mean over items of 1 / number of options; `ci95` a bootstrap interval clustered by
    person (see `statistics.clustered_interval`).

    Args:
        protocol: the id that stands beside the numbers.

    Raises:
        UnusableData: if there are no items.
    """
    n = len(scores)
    if truths := [item for item in scores if isinstance(item, ItemScore) and truth.is_truth(item)]:
        return {"protocol": protocol, "n": n, **truth.means(truths), "ci95": list(_interval(truths, truth.probability))}
    interval = _interval(scores, lambda item: item.value)
    rouges = [item.rouge for item in scores if isinstance(item, Answer) and item.rouge is not None]
    if rouges:
        means = {"f1": sum(rouge.f1 for rouge in rouges) / n, "recall": sum(rouge.recall for rouge in rouges) / n}
        return {"protocol": protocol, "n": n, "rouge_l": means, "ci95": list(interval), "distinct": _distinct(scores)}
    answers = [item for item in scores if isinstance(item, Answer)]
    opened = [item for item in scores if isinstance(item, Answered)]
    numbers: dict[str, Any] = {
        "protocol": protocol,
        "n": n,
        "correct": sum(bool(item.correct) for item in scores),
        "accuracy": sum(bool(item.correct) for item in scores) / n,
        "chance": None if opened else _chance(scores),
        "ci95": list(interval),
    }
    if opened:
        counts = outcome_counts(opened)
        split = {"outcomes": {name: counts[name] for name in OUTCOMES}}
        beside = {name: counts[name] for name in ("paraphrased", "repeated")}
        return {**numbers, "distinct": _distinct(opened), **split, **beside}
    if not answers:
        return numbers
    numbers["distinct"] = _distinct(answers)
    if numbers["chance"] is None:
        return {**numbers, "whole_words": sum(item.whole_words for item in answers) / n}
    return {**numbers, "unparsed": sum(item.parsed is None for item in answers)}


def _distinct(answers: Scores) -> int:
    return len({item.raw_output for item in answers if isinstance(item, Answer | Answered)})


def _interval(scores: Sequence[Any], value: Callable[[Any], float]) -> tuple[float, float]:
    return clustered_interval([value(item) for item in scores], [item.person for item in scores], seed=SEED)


def _chance(scores: Scores) -> float | None:
    counts = [len((item.letters or ()) if isinstance(item, Answer) else item.options) for item in scores]
    return sum(1 / count for count in counts) / len(counts) if all(counts) else None


def score_of(column: Mapping[str, Any]) -> float:
    """The one number of a column's summary: its accuracy, the F1 of ROUGE-L, or the probability of the truth."""
    if "rouge_l" in column:
        return float(column["rouge_l"]["f1"])
    return float(column["probability" if "probability" in column else "accuracy"])


def remarks(scores: Scores) -> list[str]:
    """What makes a column's number mean less than it seems to: one answer for everything, ties, one person."""
    answers = [item for item in scores if isinstance(item, Answer)]
    chosen = [item for item in scores if isinstance(item, ItemScore) and not truth.is_truth(item)]
    opened = [item for item in scores if isinstance(item, Answered)]
    found = _answer_remarks(answers) if answers else _open_remarks(opened)
    letter = constant_answer([item.predicted for item in chosen], [item.gold for item in chosen]) if chosen else None
    if letter is not None:
        found.append(f"answers {letter} to all {len(scores)} items: the model has collapsed")
    ties = sum(item.tied for item in chosen)
    if ties:
        found.append(f"{ties} ties between options; the first was taken")
    people = len({item.person for item in scores})
    if people == 1:
        found.append("all items are about one person: no interval can be given")
    elif people < FEW:
        found.append(f"{people} people only: the interval is narrower than what is known")
    return found


def _answer_remarks(answers: Sequence[Answer]) -> list[str]:
    n, found = len(answers), []
    silent = sum(not item.raw_output.strip() for item in answers)
    if silent:
        found.append(f"{silent} of {n} answers are empty")
    if answers[0].task == "classification":
        read = [item for item in answers if item.parsed is not None]
        letter = constant_answer([str(item.parsed) for item in read], [item.gold for item in read])
        if not read:
            found.append(f"none of {n} answers names an option: the model does not follow the letter prompt")
        elif len(read) < n:
            found.append(f"{n - len(read)} of {n} answers name no option and count as wrong")
        if letter is not None:
            which = f"all {n} items" if len(read) == n else f"all {len(read)} items where one could be read"
            found.append(f"answers {letter} to {which}: the letters say nothing about what it knows")
        if initials := sum(item.by_initial for item in read):
            found.append(f"{initials} of {n} letters are the first of a word")
        return found
    if constant_answer([item.raw_output for item in answers], [item.gold for item in answers]):
        found.append(f"gives one answer to all {n} items: the model has collapsed")
    if inside := sum(bool(item.correct) and not item.whole_words for item in answers):
        found.append(f"{inside} of {n} answers hold the gold text only inside other words")
    return found


def _open_remarks(answers: Sequence[Answered]) -> list[str]:
    """What is said of open answers; nothing of none."""
    n, found = len(answers), []
    gold = [item.options[item.gold] for item in answers]
    if answers and constant_answer([item.raw_output for item in answers], gold) is not None:
        found.append(f"gives one answer to all {n} items: the model has collapsed")
    if gibberish := sum(item.outcome == "gibberish" for item in answers):
        found.append(f"{gibberish} of {n} answers are gibberish")
    return found


def compare(first: Scores, second: Scores) -> Paired:
    """Score of the first model minus that of the second, paired by item and clustered by person.

    Raises:
        Mismatch: if they were not asked the same items.
        UnusableData: if there are none.
    """
    others = {item.id: item for item in second}
    if len(others) != len(second) or sorted(item.id for item in first) != sorted(others):
        raise Mismatch(
            f"the two models were scored on different items ({len(first)} and {len(second)})",
            "score both with the same benchmark: mmsurgery eval --force",
        )
    changed = [item.id for item in first if others[item.id].prompt_sha256 != item.prompt_sha256]
    if changed:
        raise Mismatch(f"{len(changed)} items had other prompts, such as {changed[0]}", "score both models again")
    right = [others[item.id].value for item in first]
    return paired_difference([item.value for item in first], right, [item.person for item in first], seed=SEED)
