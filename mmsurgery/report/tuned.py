"""Which learning rates were tried for each row, and which was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsurgery.report import numbers
from mmsurgery.report.results import Results
from mmsurgery.report.texts import NAME, cut


@dataclass(frozen=True)
class TunedRow:
    label: str
    on: str
    tried: Mapping[float, str]
    """Learning rate -> utility at matched forgetting, or that it was not reached."""
    chosen: float


@dataclass(frozen=True)
class Tuned:
    rates: Sequence[tuple[float, str]]
    rows: Sequence[TunedRow]


def tuned(results: Results, panel: str) -> Tuned | None:
    """What was tried on a panel; None where nothing was."""
    if not results.found.has("tuned") or not results.found.get("tuned").has(panel):
        return None
    found = results.found.get("tuned").get(panel).items()
    rows = []
    for key in (key for key in results.rows if key in found):
        tried = {}
        for entry in found[key].get("tried").entries():
            reached = f"{entry.get('reached').whole()} of {entry.get('levels').whole()}"
            said = numbers.percent(entry.get("utility").share()) if entry.has("utility") else "not reached"
            tried[entry.get("learning_rate").number()] = f"{said} ({reached})"
        chosen = found[key].get("learning_rate").number()
        rows.append(TunedRow(results.labels[key], cut(found[key].get("on").text(), NAME), tried, chosen))
    rates = sorted({rate for row in rows for rate in (*row.tried, row.chosen)})
    return Tuned([(rate, numbers.rate(rate)) for rate in rates], rows) if rows else None
