"""What open answers were: right, about somebody else, wrong, a refusal, or no language at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.errors import InputRefused
from mmsurgery.report import numbers
from mmsurgery.report.fields import Fields
from mmsurgery.report.results import ANCHORS, Results
from mmsurgery.report.svg import drawing, rect

OUTCOMES = {
    "correct": "correct",
    "other_person": "another person's fact",
    "wrong": "wrong but fluent",
    "refusal": "refusal",
    "gibberish": "gibberish",
}
_WIDTH, _HEIGHT = 132.0, 14.0


@dataclass(frozen=True)
class OutcomeRow:
    label: str
    remark: str
    """`collapsed in 2 of 3 runs`, or empty."""
    hollow: bool
    """Whether at least half of its runs collapsed."""
    bars: Mapping[str, Markup]
    """Column -> its bar."""


@dataclass(frozen=True)
class Outcomes:
    """Open answers of a panel."""

    columns: Sequence[tuple[str, str]]
    """(key, label)"""
    rows: Sequence[OutcomeRow]


def outcomes(results: Results, panel: str) -> Outcomes | None:
    """The shares of each outcome, row by row; None where no row has open answers."""
    rows, found = [], set()
    for key, summary in results.summary(panel).items():
        if not summary.has("outcomes"):
            continue
        hollow, label, remark = False, results.labels[key], ""
        if key not in ANCHORS and (collapsed := summary.get("collapsed").whole()):
            cells = summary.get("cells").whole()
            hollow, remark = is_collapsed(summary), "collapsed"
            remark += f" in {collapsed} of {cells} runs" if collapsed < cells else ""
        bars = {
            column: bar(shares, f"{label}, {results.quantity(column)}", hollow)
            for column, shares in summary.get("outcomes").items().items()
        }
        found |= set(bars)
        rows.append(OutcomeRow(label, remark, hollow, bars))
    columns = [(key, results.quantity(key)) for key in (*results.columns, *sorted(found - set(results.columns)))]
    return Outcomes([pair for pair in columns if pair[0] in found], rows) if found else None


def is_collapsed(summary: Fields) -> bool:
    """Whether a row counts as collapsed in charts: at least half of its runs did."""
    collapsed = summary.get("collapsed").whole()
    return collapsed > 0 and 2 * collapsed >= summary.get("cells").whole()


def bar(shares: Fields, label: str, hollow: bool) -> Markup:
    """One bar of all outcomes that occur, the whole of it named for screen readers."""
    values = {key: shares.get(key).share() for key in OUTCOMES}
    if abs(sum(values.values()) - 1) > 0.01:
        raise InputRefused(f"{shares.where}: the shares of outcomes do not add up to 1", "make it again")
    parts, x = [], 0.0
    for key, value in values.items():
        if value > 0:
            width = _WIDTH * value
            title = f"{OUTCOMES[key]}: {numbers.percent(value)}"
            parts.append(rect(x, 1, max(width - 0.8, 0.6), _HEIGHT - 2, f"o-{key}", title))
            x += width
    said = ", ".join(f"{OUTCOMES[key]} {numbers.percent(value)}" for key, value in values.items() if value > 0)
    look = "outcome hollow" if hollow else "outcome"
    # HTML's style stretches the bar over its cell
    return drawing(_WIDTH, _HEIGHT, f"{label}: {said}", *parts, class_=look, preserveAspectRatio="none")
