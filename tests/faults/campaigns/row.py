"""One line of the table of promises: what was tried, the figure that came out, and whether the promise was kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    promise: int
    """Its number."""
    what: str
    figure: str
    kept: bool
    seconds: float
