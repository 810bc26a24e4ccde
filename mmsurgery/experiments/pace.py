"""How long a grid has to go, from what its steps took: what was found took no time and says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

PREPARED = "prepared"
"""The step before a level's rows: its models trained, their scores and what rows need in common."""
_WEIGHTS = {PREPARED: 4.0}
"""What a step takes beside a row, as long as none of its kind was made."""
_FOUND = 3.0
"""Up to so many seconds earlier versions said `done` of what they found."""
_STEPS = frozenset({"done", "found", "failed", PREPARED})
_MADE = frozenset({"done", PREPARED})


@runtime_checkable
class Estimated(Protocol):
    """A `Progress` that can show how long all of it has to go."""

    def left(self, seconds: float | None) -> None:
        """Seconds from now on; None where nothing is known."""
        ...


class Pace:
    """The steps of a grid that are still to come.

    Args:
        pieces: for each piece of work, whose steps follow each other, its levels' labels and the rows of each, as
            often as they are run.
        jobs: pieces at a time.
        before: events of earlier runs.
    """

    def __init__(
        self, pieces: Sequence[Mapping[str, Sequence[str]]], jobs: int, before: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._jobs = jobs
        self._waiting = [
            [(label, kind) for label, rows in piece.items() for kind in (PREPARED, *rows)] for piece in pieces
        ]
        self._took: dict[str, list[float]] = {}
        for event in before:
            self._learn(event)

    def _learn(self, event: Mapping[str, Any]) -> None:
        if event["event"] in _MADE and not event.get("found") and event["seconds"] > _FOUND:
            self._took.setdefault(str(event.get("row", PREPARED)), []).append(float(event["seconds"]))

    def tell(self, event: Mapping[str, Any]) -> bool:
        """Whether an event ends a step."""
        if event["event"] not in _STEPS:
            return False
        self._learn(event)
        step = (event["level"], event.get("row", PREPARED))
        for piece in self._waiting:
            if step in piece:
                piece.remove(step)
                break
        return True

    def left(self) -> float | None:
        """Seconds of the steps to come; None as long as no step was made."""
        if not self._took:
            return None
        unit = fmean(fmean(took) / _WEIGHTS.get(kind, 1.0) for kind, took in self._took.items())
        pieces = [sum(self._expected(kind, unit) for _, kind in piece) for piece in self._waiting]
        return max(sum(pieces) / self._jobs, *pieces, 0.0)

    def _expected(self, kind: str, unit: float) -> float:
        return fmean(self._took[kind]) if kind in self._took else unit * _WEIGHTS.get(kind, 1.0)
