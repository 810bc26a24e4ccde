"""How open answers end: right, another person's fact, wrong, refused, gibberish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsurgery.errors import printable
from mmsurgery.figures.canvas import (
    INK,
    LEGEND_LINE,
    PAGE,
    Entry,
    Results,
    Title,
    box,
    collapsed,
    fallen,
    heading,
    labels,
    legend,
    legend_lines,
    render,
    sheet,
    title_of,
    write,
)
from mmsurgery.figures.looks import ENDS, OUTCOMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR, _TOP, _BOTTOM, _GAP, _RIGHT, _LETTER = 0.19, 0.28, 0.4, 0.26, 0.14, 0.052
_NUMBERED = 0.17
"""Inches: bars at least this long carry their number."""


def outcomes(results: Results, panel: str, format: str = "svg") -> bytes:
    """Stacked bars of a panel: a line per row, beside each other the columns whose open answers were judged."""
    return render(lambda: _figure(results, panel), format)


def has_outcomes(results: Results, panel: str) -> bool:
    """Whether open answers were judged."""
    return any(entry["outcomes"] for entry in results["summary"][panel].values())


def _figure(results: Results, panel: str) -> Figure:
    summary = results["summary"][panel]
    rows = [(key, label) for key, label in labels(results).items() if key in summary and summary[key]["outcomes"]]
    judged = {column for key, _ in rows for column in summary[key]["outcomes"]}
    columns = [column for column in results["columns"] if column in judged]
    left = 0.16 + _LETTER * max(len(label) for _, label in rows)
    width = max(0.9, (PAGE - left - _RIGHT - _GAP * (len(columns) - 1)) / max(len(columns), 2))
    whole = left + len(columns) * width + (len(columns) - 1) * _GAP + _RIGHT
    entries: list[Entry] = [(each.name, {"color": each.fill.light, "linewidth": 6}) for each in OUTCOMES.values()]
    outlined = {key for key, _ in rows if key not in ENDS and collapsed(summary[key])}
    if outlined:
        edge = {"marker": "s", "markersize": 6, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
        entries.append((f"outlined: {fallen(results)}", edge))
    tall = _BAR * len(rows)
    title = Title.of(results, title_of(results, panel), whole - 0.16)
    height = title.room + _TOP + tall + _BOTTOM + LEGEND_LINE * (legend_lines(entries, whole - 0.2) + 0.3)
    figure = sheet(whole, height)
    title.draw(figure)
    high = height - title.room
    for place, column in enumerate(columns):
        axes = box(figure, left + place * (width + _GAP), high - _TOP - tall, width, tall)
        heading(axes, results["columns"][column]["label"])
        for line, (key, _) in enumerate(rows):
            start = 0.0
            for outcome, look in OUTCOMES.items():
                share = 100 * summary[key]["outcomes"].get(column, {}).get(outcome, 0.0)
                axes.barh(line, share, 0.78, left=start, color=look.fill.light, edgecolor="white", linewidth=0.4)
                if share * width / 100 >= _NUMBERED:
                    at = {"ha": "center", "va": "center_baseline", "fontsize": 5.5, "color": look.on.light}
                    write(axes, start + share / 2, line, f"{share:.0f}", **at)
                start += share
            if key in outlined:
                axes.barh(line, 100, 0.88, color="none", edgecolor=INK, linewidth=0.9, clip_on=False)
        axes.set_xlim(0, 100)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), ["" if place else printable(label) for _, label in rows], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("% of open answers", labelpad=2)
    legend(figure, entries, 0.1, high - _TOP - tall - _BOTTOM, whole - 0.2)
    return figure
