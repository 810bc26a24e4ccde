"""What is forgotten against what is kept, along each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.figures import looks
from mmsurgery.figures.canvas import (
    COLUMN,
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
    legend_lines,
    render,
    sheet,
    styles,
    title_of,
    whole_percents,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 0.42, 0.1, 0.26, 0.36, 2.2
"""Inches around the axes of one facet, and their height."""
_TARGET: dict[str, Any] = {"color": FAINT, "linestyle": (0, (1, 1.5)), "linewidth": 1.0}

_BEYOND: dict[str, Any] = {"linestyle": (0, (3, 2.4)), "linewidth": 0.9}

Point = tuple[float, float]
"""Forget VQA and utility, in percent."""


def tradeoff(results: Results, panel: str, format: str = "svg") -> bytes:
    """Utility against Forget VQA along each run of a panel: thin lines for runs, thick ones for their means.

    A marker stands where a row's budget ends on the average, hollow where at least half of its runs collapsed; thin
    dashed lines go on where runs were searched for matched forgetting, dotted ones stand where rows are compared.
    Rows in groups (ablations) get axes per group, with the row that all are compared with in each.
    """
    return render(lambda: _figure(results, panel), format)


def _figure(results: Results, panel: str) -> Figure:
    facets = _facets(results, panel)
    columns = 1 if len(facets) == 1 else 2
    width = COLUMN if columns == 1 else PAGE
    inside = width / columns - _LEFT - _RIGHT
    legends = [_entries(results, panel, rows) for _, rows in facets]
    blocks = [range(first, min(first + columns, len(facets))) for first in range(0, len(facets), columns)]
    above = _TOP if any(label for label, _ in facets) else _TOP / 3
    heights = [
        above + _HEIGHT + _BOTTOM + LEGEND_LINE * (max(legend_lines(legends[i], inside + 0.3) for i in block) + 0.5)
        for block in blocks
    ]
    title = Title.of(results, title_of(results, panel), width - 0.16)
    figure = sheet(width, sum(heights) + title.room)
    title.draw(figure)
    top = sum(heights)
    for block, height in zip(blocks, heights, strict=True):
        for place, number in enumerate(block):
            left, bottom = place * width / columns + _LEFT, top - above - _HEIGHT
            label, rows = facets[number]
            axes = box(figure, left, bottom, inside, _HEIGHT)
            heading(axes, label)
            _draw(axes, results, panel, rows)
            legend(figure, legends[number], left - 0.3, bottom - _BOTTOM, inside + 0.3)
        top -= height
    return figure


def _facets(results: Results, panel: str) -> list[tuple[str, list[str]]]:
    """Heading and row keys of each axes; what stands alone needs none below the figure's title."""
    compared, title = results["compared"], title_of(results, panel)
    groups: dict[str | None, list[str]] = {}
    for row in results["rows"]:
        if row["key"] != compared:
            groups.setdefault(row["group"], []).append(row["key"])
    order = [row["key"] for row in results["rows"]]
    return [
        ("" if group is None else f"{title}: {group}", sorted([*rows, compared], key=order.index))
        for group, rows in groups.items()
    ] or [("", [compared])]


def _entries(results: Results, panel: str, rows: Sequence[str]) -> list[Entry]:
    """The legend: rows, then what the other marks mean."""
    names, drawn, summary = labels(results), styles(results), results["summary"][panel]
    entries: list[Entry] = []
    for row in rows:
        entry, text = summary[row], names[row]
        if not _runs(results, panel, row):
            text = f"{text} (failed)"
        elif entry["collapsed"]:
            text = f"{text} ({fallen(results)} in {entry['collapsed']} of {entry['cells']})"
        entries.append((text, {**drawn[row].line(1.6), **drawn[row].point(hollow=collapsed(entry))}))
    entries += [(name, end_point(name)) for name in ("vanilla", "gold") if name in summary]
    entries.append(("matched forgetting", _TARGET))
    if any(max(run) > _budget(results, panel, row) for row in rows for run in _runs(results, panel, row)):
        entries.append((looks.BEYOND, {"color": FAINT, **_BEYOND}))
        entries.append((f"markers: {looks.FIXED}", {"linestyle": "none"}))
    if any(len(_runs(results, panel, row)) > 1 for row in rows):
        entries.append(("one run", {"color": FAINT, "linewidth": 0.6}))
    return entries


def _draw(axes: Axes, results: Results, panel: str, rows: Sequence[str]) -> None:
    rows_look, summary = styles(results), results["summary"][panel]
    for target in sorted({level["target"] for level in results["levels"] if level["panel"] == panel}):
        axes.axvline(100 * target, **_TARGET, zorder=1)
    for row in rows:
        _draw_row(axes, _runs(results, panel, row), rows_look[row], _budget(results, panel, row))
    for row in rows:
        end = _fixed(summary[row])
        if end is not None:
            axes.plot(*end, **rows_look[row].point(hollow=collapsed(summary[row]), size=6.5), zorder=5)
    for name in ("vanilla", "gold"):
        end = _fixed(summary[name]) if name in summary else None
        if end is not None:
            axes.plot(*end, **end_point(name, 6.5), zorder=6)
    axes.margins(0.05)
    whole_percents(axes)
    axes.set_xlabel("Forget VQA, % (left: forgotten)", labelpad=2)
    axes.set_ylabel("Utility, % (up: kept)", labelpad=2)


def _draw_row(axes: Axes, runs: Sequence[Mapping[int, Point]], look: Style, budget: int) -> None:
    if len(runs) > 1:
        for run in runs:
            within, beyond = _split(run, budget)
            thin: dict[str, Any] = {"color": look.colour, "linewidth": 0.5, "alpha": 0.35, "zorder": 2}
            axes.plot(*zip(*within, strict=True), **thin)
            if len(beyond) > 1:
                axes.plot(*zip(*beyond, strict=True), **thin, linestyle=_BEYOND["linestyle"])
    if runs:
        # where runs were searched for differently long, the mean ends with the shortest
        shared = sorted(set.intersection(*(set(run) for run in runs)))
        mean = {step: _mean([run[step] for run in runs]) for step in shared}
        within, beyond = _split(mean, budget)
        axes.plot(*zip(*within, strict=True), **look.line(1.6), zorder=3)
        if len(beyond) > 1:
            axes.plot(*zip(*beyond, strict=True), color=look.colour, **_BEYOND, zorder=3)


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _split(run: Mapping[int, Point], budget: int) -> tuple[list[Point], list[Point]]:
    """A run up to the end of the fixed budget, and from there on."""
    steps = sorted(run)
    last = max((step for step in steps if step <= budget), default=budget)
    return [run[step] for step in steps if step <= budget], [run[step] for step in steps if step >= last]


def _budget(results: Results, panel: str, row: str) -> int:
    """Steps of the fixed budget; 0 where every run of the row failed."""
    return min((cell["steps"] for cell in _cells(results, panel, row)), default=0)


def _cells(results: Results, panel: str, row: str) -> list[Mapping[str, Any]]:
    """Runs of a row that did not fail."""
    return [cell for cell in results["cells"] if cell["panel"] == panel and cell["row"] == row and "failed" not in cell]


def _runs(results: Results, panel: str, row: str) -> list[dict[int, Point]]:
    """Step -> point of each run of a row that did not fail."""
    return [
        {at["step"]: (100 * at["columns"][FORGET], 100 * at["utility"]) for at in cell["curve"]}
        for cell in _cells(results, panel, row)
    ]


def _fixed(entry: Mapping[str, Any]) -> Point | None:
    fixed = entry["fixed"]
    return (100 * fixed[FORGET]["mean"], 100 * fixed["utility"]["mean"]) if FORGET in fixed else None
