"""What open answers were: right, about somebody else, wrong, a refusal, or no language at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.errors import InputRefused
from mmsurgery.figures.looks import OUTCOMES
from mmsurgery.report import numbers
from mmsurgery.report.fields import Fields
from mmsurgery.report.results import ANCHORS, Results
from mmsurgery.report.svg import element

_HEIGHT = 16.0
_NARROW, _WIDE = 0.16, 0.06
"""Parts of a bar that carry their number in a narrow and in a wide cell, at least."""


@dataclass(frozen=True)
class OutcomeRow:
    label: str
    remark: str
    """`collapsed in 2 of 3 runs`, or empty."""
    hollow: bool
    """Whether at least half of its runs collapsed; its bars have an outline."""
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
            hollow, remark = is_collapsed(summary), results.fallen
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
    """One bar of all outcomes that occur, as wide as its cell, the whole of it named for screen readers."""
    values = {key: shares.get(key).share() for key in OUTCOMES}
    if abs(sum(values.values()) - 1) > 0.01:
        raise InputRefused(f"{shares.where}: the shares of outcomes do not add up to 1", "make it again")
    parts, written, x = [], [], 0.0
    for key, value in values.items():
        if value > 0:
            title = element("title", f"{OUTCOMES[key].name}: {numbers.percent(value)}")
            width = f"{100 * max(value, 0.004):.2f}%"
            at: dict[str, str | float] = {"x": f"{100 * x:.2f}%", "width": width, "y": 1, "height": _HEIGHT - 2}
            parts.append(element("rect", title, class_=f"o-{key}", **at))
        if value >= _WIDE:
            place: dict[str, str | float] = {"x": f"{100 * (x + value / 2):.2f}%", "y": 11.5, "text_anchor": "middle"}
            look = f"on-{key}" + ("" if value >= _NARROW else " small")
            written.append(element("text", f"{100 * value:.0f}", class_=look, **place))
        x += value
    said = ", ".join(f"{OUTCOMES[key].name} {numbers.percent(value)}" for key, value in values.items() if value > 0)
    look = "outcome hollow" if hollow else "outcome"
    # without a view box: lengths in percent follow the cell, and numbers keep their shape
    return element("svg", *parts, *written, class_=look, height=_HEIGHT, role="img", aria_label=f"{label}: {said}")
