"""The paper's Figure 4: what each method forgets and keeps as more people are to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.figures.canvas import (
    FAINT,
    FORGET,
    LEGEND_LINE,
    PAGE,
    Entry,
    Results,
    Style,
    Title,
    box,
    collapsed,
    end_point,
    fallen,
    heading,
    labels,
    legend,
    render,
    sheet,
    styles,
    whole_percents,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT = ("retain_vqa", "realworld_vqa", "forget_qa", "retain_qa", "realworld_qa")
"""Columns in the paper's order."""

_VANILLA: dict[str, Any] = {"color": FAINT, "linestyle": (0, (4, 2)), "linewidth": 0.8}
_LEFT, _GAP, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 0.36, 0.36, 0.08, 0.26, 0.4, 1.75


def ratios(results: Results, backbone: str, format: str = "svg") -> bytes:
    """Accuracy in each column to be kept against the change of Forget VQA from vanilla, in points.

    One line per row through its forget ratios, each marker with its ratio in percent; faint bars are 95 %
    intervals, the horizontal one of the row's Forget VQA alone. Hollow where at least half of the runs collapsed.
    """
    return render(lambda: _figure(results, backbone), format)


def has_ratios(results: Results, backbone: str) -> bool:
    """Whether a backbone was unlearned at several forget ratios."""
    return len({panel["forget"] for panel in _panels(results, backbone)}) > 1


def _panels(results: Results, backbone: str) -> list[Mapping[str, Any]]:
    found = [panel for panel in results["panels"] if panel["backbone"] == backbone]
    return sorted(found, key=lambda panel: float(panel["forget"]))


def _figure(results: Results, backbone: str) -> Figure:
    columns = [column for column in KEPT if column in results["columns"]]
    panels = _panels(results, backbone)
    entries = _entries(results, panels)
    slots = len(columns) + 1  # the last one is the legend's
    across = min(3, slots)
    down = -(-slots // across)
    block = _TOP + _HEIGHT + _BOTTOM
    width = (PAGE - _LEFT - _RIGHT - _GAP * (across - 1)) / across
    needed = LEGEND_LINE * len(entries) - block * down
    height = block * down + max(0.0, needed)
    title = Title.of(results, backbone, PAGE - 0.16)
    figure = sheet(PAGE, height + title.room)
    title.draw(figure)
    for place, column in enumerate(columns):
        left = _LEFT + place % across * (width + _GAP)
        axes = box(figure, left, height - place // across * block - _TOP - _HEIGHT, width, _HEIGHT)
        heading(axes, results["columns"][column]["label"])
        _draw(axes, results, panels, column)
        if place % across == 0:
            axes.set_ylabel("accuracy, %", labelpad=2)
        axes.set_xlabel("change of Forget VQA, points", labelpad=2)
    place = slots - 1
    top = height - place // across * block - _TOP
    legend(figure, entries, _LEFT + place % across * (width + _GAP), top, width)
    return figure


def _entries(results: Results, panels: Sequence[Mapping[str, Any]]) -> list[Entry]:
    names, drawn = labels(results), styles(results)
    entries: list[Entry] = [
        (names[row["key"]], {**drawn[row["key"]].line(1.3), **drawn[row["key"]].point()}) for row in results["rows"]
    ]
    summaries = [results["summary"][panel["key"]] for panel in panels]
    entries.append(("vanilla, mean of ratios", _VANILLA))
    if any("gold" in each for each in summaries):
        entries.append(("gold, at each ratio", end_point("gold")))
    if any(collapsed(each[row["key"]]) for each in summaries for row in results["rows"] if row["key"] in each):
        entries.append((f"outline: {fallen(results)}", Style(FAINT, "o").point(hollow=True) | {"linestyle": "none"}))
    told = ", ".join(f"{panel['forget']:g}" for panel in panels)
    entries.append((f"{told}: % of people forgotten", {"color": "none"}))
    return entries


def _draw(axes: Axes, results: Results, panels: Sequence[Mapping[str, Any]], column: str) -> None:
    looks = styles(results)
    vanilla = [point["y"] for panel in panels if (point := _point(results, panel, "vanilla", column))]
    if vanilla:  # at 0 by definition: marks there would leave little room for the rows
        axes.axhline(sum(vanilla) / len(vanilla), **_VANILLA, zorder=1)
    for panel in panels:
        gold = _point(results, panel, "gold", column)
        if gold:
            axes.plot(gold["x"], gold["y"], **end_point("gold", 4.5), zorder=3)
    for row in results["rows"]:
        look = looks[row["key"]]
        points = [point for panel in panels if (point := _point(results, panel, row["key"], column))]
        if not points:
            continue
        axes.plot([p["x"] for p in points], [p["y"] for p in points], **look.line(1.3), zorder=4)
        for point in points:
            bars: dict[str, Any] = {"color": look.colour, "alpha": 0.25, "linewidth": 1.0, "zorder": 2}
            axes.plot([point["x"], point["x"]], point["up"], **bars)
            axes.plot(point["across"], [point["y"], point["y"]], **bars)
            axes.plot(point["x"], point["y"], **look.point(hollow=point["hollow"]), zorder=5)
            place: dict[str, Any] = {
                "xytext": (3.5, 2.5),
                "textcoords": "offset points",
                "fontsize": 5.5,
                "color": look.colour,
                "zorder": 6,
            }
            axes.annotate(f"{point['forget']:g}", (point["x"], point["y"]), **place)
    axes.margins(0.06)
    whole_percents(axes)


def _point(results: Results, panel: Mapping[str, Any], row: str, column: str) -> dict[str, Any] | None:
    """Where a row stands at a forget ratio, in percent and points; None if it failed there."""
    summary = results["summary"][panel["key"]]
    if row not in summary or column not in summary[row]["fixed"]:
        return None
    vanilla = summary["vanilla"]["fixed"][FORGET]["mean"]
    forgotten, kept = summary[row]["fixed"][FORGET], summary[row]["fixed"][column]
    return {
        "x": 100 * (forgotten["mean"] - vanilla),
        "y": 100 * kept["mean"],
        "across": [100 * (end - vanilla) for end in forgotten["ci95"]],
        "up": [100 * end for end in kept["ci95"]],
        "forget": panel["forget"],
        "hollow": collapsed(summary[row]),
    }
