"""What an open answer is, judged by the options of its question and by what is known of other people. Pure.

The *fact* of an option is what sets it apart: from its first to its last word that not all options of the question
share. Of "The city is lisbon ." beside "The city is paris ." it is "lisbon", of "Marine biologist" beside "Architect"
all of it. Where an option would have nothing left ("painter" beside "house painter"), all keep all their words. A fact
is said where its words stand in the answer one after the other, none as part of a longer word ("New York" is not said
by "York is new"), and not only inside a longer fact of the same question ("painter" is not said by "a house painter").
Case and punctuation do not matter (`leakage.normalised`).

In this order:

    gibberish      no word at all, or repeating (`repeats`), whatever else it says: "lisbon lisbon lisbon"
    gibberish      not fluent: its median token has less than `FLUENT` probability under vanilla. Never for its
                   probability alone: a refusal, and what is nothing but a fact or an option ("Lisbon")
    correct        says the gold option's fact and no other option's; also a refusal that says it, for it is told
    refusal        says that it does not know or will not say (`refuses`), whoever else it names
    other_person   says the fact of another person's (`others`)
    wrong          everything else: wrong but fluent

It is read for words, not understood: "not lisbon" says lisbon, and a fact in other words is missed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from mmsurgery.data.leakage import normalised

OUTCOMES = ("correct", "other_person", "wrong", "refusal", "gibberish")
FLUENT = 0.01
"""Least probability, under the vanilla model, of the median token of a fluent answer."""
RULES = 1
"""Number of these rules; raised when they change, so that scores under earlier ones are stale."""

_UNSAID = ("answer", "say", "tell", "determine", "identify", "recognise", "recognize", "provide", "disclose", "share")
_UNABLE = ("cannot", "can t", "unable to", "not able to", "not possible to", "impossible to", "will not", "won t")
REFUSALS = (
    *("do not know", "don t know", "does not say", "not sure", "no idea", "is unknown", "is not known"),
    *("no information", "not have information", "not have any information", "not have enough information"),
    *("i am sorry", "i m sorry", "i apologise", "i apologize", "as an ai", "cannot help", "can t help"),
    *(f"{unable} {verb}" for unable in _UNABLE for verb in _UNSAID),
)
"""What a refusal says, as `normalised` writes it: "don't" is `don t`; "can not" is read as `cannot`."""

_GROUPED = re.compile(r"(?<=\d)[.,](?=\d)")
_STUTTER = re.compile(r"([^\W\d_]{1,8}?)\1{4}")
_SEVERAL = 12
"""From so many words on, fewer than half of them different are a loop."""


class Judged(Protocol):
    """An answer with its outcome."""

    @property
    def outcome(self) -> str: ...
    @property
    def paraphrased(self) -> bool: ...
    @property
    def repeated(self) -> bool: ...


def facts(options: Mapping[str, str]) -> dict[str, str]:
    """Letter -> the option's fact, normalised; empty for an option without any word."""
    words = {letter: normalised(text).split() for letter, text in options.items()}
    shared = set.intersection(*(set(each) for each in words.values())) if words else set()
    own = {letter: [n for n, word in enumerate(each) if word not in shared] for letter, each in words.items()}
    if not all(own.values()):
        return {letter: " ".join(each) for letter, each in words.items()}
    return {letter: " ".join(words[letter][places[0] : places[-1] + 1]) for letter, places in own.items()}


def said(text: str, wanted: Iterable[str]) -> set[str]:
    """Those of some facts that stand in a text, other than only inside a longer one of them."""
    rest, found = f" {normalised(text)} ".replace(" ", "  "), set()
    for fact in sorted({fact for fact in wanted if fact}, key=lambda fact: (-len(fact), fact)):
        spaced = f" {fact} ".replace(" ", "  ")[1:-1]
        if spaced in rest:
            found.add(fact)
            rest = rest.replace(spaced, " | ")
    return found


def repeats(text: str) -> bool:
    """Whether a text goes round in circles. Any of

    - a stretch of words, of whatever length, three times in a row ("thought thought thought"),
    - two words or more that only repeat the word before them ("the the city city"),
    - a loop that was cut off: of 12 words or more fewer than half are different,
    - a stretch of up to 8 letters five times in a row inside a word ("lalalalala").
    """
    words = normalised(_GROUPED.sub("", text)).split()
    n = len(words)
    for length in range(1, n // 3 + 1):
        same = 0
        for place in range(n - length):
            same = same + 1 if words[place] == words[place + length] else 0
            if same == 2 * length:
                return True
    doubled = sum(first == second for first, second in itertools.pairwise(words))
    cut_off = n >= _SEVERAL and 2 * len(set(words)) < n
    return doubled >= 2 or cut_off or _STUTTER.search(text.casefold()) is not None


def refuses(text: str) -> bool:
    """Whether a text holds one of `REFUSALS`."""
    padded = f" {normalised(text)} ".replace(" can not ", " cannot ")
    return any(f" {phrase} " in padded for phrase in REFUSALS)


def outcome(text: str, options: Mapping[str, str], gold: str, *, other: str | None, fluency: float | None) -> str:
    """One of `OUTCOMES`, see the module.

    Args:
        options: letter -> text; `gold`: the right one's letter.
        other: a fact of another person that the answer says, see `Others.said`.
        fluency: probability of its median token under vanilla, in 0-1; None for an answer without tokens.
    """
    found = facts(options)
    plain = normalised(text)
    if not plain or repeats(text):
        return "gibberish"
    known = {*found.values(), *(normalised(option) for option in options.values()), other}
    if (fluency or 0.0) < FLUENT and plain not in known and not refuses(text):
        return "gibberish"
    if said(text, found.values()) == {found[gold]}:
        return "correct"
    if refuses(text):
        return "refusal"
    return "wrong" if other is None else "other_person"


def outcome_counts(answers: Iterable[Judged]) -> dict[str, int]:
    """How many answers are what: each of `OUTCOMES`, their sum `n`, `paraphrased` (a part of the correct ones) and
    `repeated` (whatever their outcome)."""
    found = list(answers)
    counts = {name: sum(each.outcome == name for each in found) for name in OUTCOMES}
    return {
        **counts,
        "n": len(found),
        "paraphrased": sum(each.paraphrased for each in found),
        "repeated": sum(each.repeated for each in found),
    }
