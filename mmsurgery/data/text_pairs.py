"""Text questions with answers about a person, made from facts that are not the scored questions.

MLLMU-Bench publishes text questions only as scored items. Saliency of text knowledge is measured on
pairs made here: from the biography's facts through one template, or from a person's picture
questions with the name put in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mmsurgery.errors import InputRefused
from mmsurgery.provenance import parse_json

Pair = tuple[str, str]

_FACTS = {
    "born": "place of birth",
    "employment": "occupation",
    "educated at": "place of education",
    "heights": "height",
    "medical conditions": "medical condition",
    "residence": "place of residence",
}
"""Spelling in the biography -> how the question calls it; other facts are called by their key."""

_PERSON = re.compile(
    r"\b(?:the|this|that)\s+(?:person|individual|man|woman|character|figure|subject)"
    r"(?:\s+(?:shown|depicted|pictured|featured|seen|displayed|portrayed))?"
    r"(?:\s+in\s+(?:the|this)\s+(?:image|picture|photo|photograph|portrait))?\b",
    re.IGNORECASE,
)
_PICTURE = re.compile(r"\b(?:image|picture|photo|photograph|portrait)\b", re.IGNORECASE)
_NAME = re.compile(r"\b(?:name|named|called)\b", re.IGNORECASE)


def parse_biography(text: str, where: str) -> dict[str, object]:
    """A biography's facts, keys in lower case without blanks and colons around them and with single blanks inside;
    of two spellings of one key the first that says something counts.

    Raises:
        InputRefused: naming `where`, if it is not one JSON object.
    """
    value = parse_json(text.encode(), where)
    if not isinstance(value, dict):
        raise InputRefused(f"{where} is not a JSON object")
    facts: dict[str, object] = {}
    for key, fact in value.items():
        plain = " ".join(key.lower().split()).strip(" :")
        if not facts.get(plain):
            facts[plain] = fact
    return facts


def biography_pairs(facts: dict[str, object]) -> tuple[list[Pair], int]:
    """Pairs from the flat facts of a biography, and how many facts gave none.

    Nested and listed facts (`Parents`, `Fun Facts`) give none: what their parts say of whom differs from person
    to person, and no one template is true of all.
    """
    name = facts.get("name")
    others = {key: value for key, value in facts.items() if key not in ("name", "description")}
    if not isinstance(name, str) or not name.strip():
        return [], len(others)
    pairs = []
    for key, value in others.items():
        if isinstance(value, str) and value.strip():
            called = _FACTS.get(key, key)
            pairs.append(
                (
                    f"What is the {called} of {name.strip()}?",
                    f"The {called} of {name.strip()} is {value.strip().rstrip('.')}.",
                )
            )
    return pairs, len(others) - len(pairs)


def named_pairs(pairs: Iterable[Pair], name: str | None) -> tuple[list[Pair], int]:
    """Picture questions with the person's name put in, and how many could not be resolved.

    A pair is unresolved if it nowhere says whom it means, still speaks of a picture afterwards, or
    asks for the name itself.
    """
    resolved, unresolved = [], 0
    for question, answer in pairs:
        asked = None if name is None else _PERSON.sub(lambda _: name, question)
        told = None if name is None else _PERSON.sub(lambda _: name, answer)
        if (
            asked is None
            or told is None
            or asked == question
            or _NAME.search(question)
            or _PICTURE.search(asked + told)
        ):
            unresolved += 1
        else:
            resolved.append((asked, told))
    return resolved, unresolved
