"""Text from outside at a length that a page can hold."""

from __future__ import annotations

NAME, SENTENCE, ANSWER = 100, 1200, 600
"""Longest name, remark or finding, and question or answer, in characters."""


def cut(text: str, length: int) -> str:
    """`text`, or its first `length` characters and how many there were."""
    return text if len(text) <= length else f"{text[:length]} … (cut, {len(text):,} characters)"
