"""Ablations that sweep a number: what a setting's value does to forgetting and utility."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.errors import printable
from mmsurgery.figures.canvas import (
    COLUMN,
    FAINT,
    FORGET,
    INK,
    LEGEND_LINE,
    PAGE,
    Entry,
    Results,
    Style,
    Title,
    box,
    heading,
    labels,
    legend,
    legend_lines,
    render,
    sheet,
    style_of,
    title_of,
    whole_percents,
    write,
)
from mmsurgery.figures.looks import FORGOTTEN, KEPT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT, _GAP, _RIGHT, _TOP, _MIDDLE, _BOTTOM, _HEIGHT = 0.42, 0.34, 0.1, 0.26, 0.4, 0.5, 1.3
_ACROSS = 3
"""Sweeps side by side, at most."""
_DRAWN: Mapping[str, Style] = {"utility": style_of(KEPT), FORGET: style_of(FORGOTTEN)}
_TARGET: dict[str, Any] = {"color": FAINT, "linestyle": (0, (1, 1.5)), "linewidth": 1.0}

Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """Rows that differ in one number."""

    name: str
    """The rows' group."""
    values: Mapping[str, float]
    """Row key -> value, rising; the row that all are compared with is there where it has one of its own."""

    @property
    def log(self) -> bool:
        """Whether the values span more than a decade."""
        low, high = min(self.values.values()), max(self.values.values())
        return low > 0 and high / low > 10


def _of_mask(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: (row["mask"] or {}).get(key)


_SET: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "beta": _of_mask("beta"),
    "density": _of_mask("density"),
    "forget_weight": lambda row: row["forget_weight"],
    "retain_batch": lambda row: row["retain_batch"],
    "learning_rate": lambda row: row["learning_rate"],
}
"""What a row was told; None where it was not, then what its runs did counts."""

_DONE: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "density": lambda cell: cell["density"],
    "retain_batch": lambda cell: cell["samples"]["retain"] / cell["steps"],
    "learning_rate": lambda cell: cell["learning_rate"],
}


def sweeps_of(results: Results, panel: str) -> list[Sweep]:
    """The groups of rows of a panel, of one method, in which exactly one number differs, and from row to row."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        if row["group"] is not None:
            groups.setdefault(row["group"], []).append(row)
    compared = next(row for row in results["rows"] if row["key"] == results["compared"])
    cells = [cell for cell in results["cells"] if cell["panel"] == panel and "failed" not in cell]
    found = []
    for group, rows in groups.items():
        if len({row["method"] for row in rows}) > 1:
            continue
        swept = [values for name in _SET if (values := _values(name, rows, compared, cells)) is not None]
        if len(swept) == 1:
            found.append(Sweep(group, dict(sorted(swept[0].items(), key=lambda item: item[1]))))
    return found


def _values(name: str, rows: Cells, compared: Mapping[str, Any], cells: Cells) -> dict[str, float] | None:
    """The rows' values of a setting; None where that is not what the rows differ in."""
    told = [_SET[name](row) for row in rows]
    if all(value is None for value in told):
        return None
    values = {row["key"]: _value(name, row, cells) for row in rows}
    known = {key: value for key, value in values.items() if value is not None}
    if len(known) < len(values) or len(set(known.values())) < len(known):
        return None
    own = _value(name, compared, cells)
    if own is not None and all(not math.isclose(own, value) for value in known.values()):
        known[compared["key"]] = own
    return known if len(known) > 1 else None


def _value(name: str, row: Mapping[str, Any], cells: Cells) -> float | None:
    told = _SET[name](row)
    if told is not None or name not in _DONE:
        return told
    done = [value for cell in cells if cell["row"] == row["key"] and (value := _DONE[name](cell)) is not None]
    return sum(done) / len(done) if done else None


def sweeps(results: Results, panel: str, format: str = "svg") -> bytes:
    """A panel's sweeps side by side: utility and Forget VQA at the fixed budget, utility at matched forgetting below.

    Bars are 95 % intervals; the row that all are compared with is ringed; a cross at the bottom says that no run
    of a row reached matched forgetting, a fraction how many did where it was not all.
    """
    return render(lambda: _figure(results, panel), format)


def _figure(results: Results, panel: str) -> Figure:
    found = sweeps_of(results, panel)
    blocks = math.ceil(len(found) / _ACROSS)
    across = math.ceil(len(found) / blocks)
    width = PAGE if across > 1 else COLUMN
    inside = (width - _LEFT - _RIGHT - _GAP * (across - 1)) / across
    entries = _entries(results)
    block = _TOP + _HEIGHT + _MIDDLE + _HEIGHT + _BOTTOM
    height = block * blocks + LEGEND_LINE * (legend_lines(entries, width - 0.2) + 0.3)
    title = Title.of(results, title_of(results, panel), width - 0.16)
    figure = sheet(width, height + title.room)
    title.draw(figure)
    drawn: dict[str, list[Axes]] = {"fixed": [], "matched": []}
    for place, sweep in enumerate(found):
        left = _LEFT + place % across * (inside + _GAP)
        bottom = height - place // across * block - _TOP - _HEIGHT
        for comparison, told in (("fixed", "fixed budget, %"), ("matched", "Utility, matched, %")):
            axes = box(figure, left, bottom, inside, _HEIGHT)
            _draw(axes, results, panel, sweep, comparison)
            if place % across == 0:
                axes.set_ylabel(told, labelpad=2)
            drawn[comparison].append(axes)
            bottom -= _MIDDLE + _HEIGHT
        heading(drawn["fixed"][-1], sweep.name)
        drawn["matched"][-1].set_xlabel(printable(sweep.name), parse_math=False, labelpad=2)
    for row in drawn.values():
        ends = [end for axes in row for end in axes.get_ylim()]
        for axes in row:
            axes.set_ylim(min(ends), max(ends))
            whole_percents(axes)
    legend(figure, entries, 0.1, height - block * blocks, width - 0.2)
    return figure


def _entries(results: Results) -> list[Entry]:
    names = {"utility": "Utility", FORGET: results["columns"][FORGET]["label"]}
    entries: list[Entry] = [(names[what], {**look.line(1.3), **look.point()}) for what, look in _DRAWN.items()]
    ring = {**_ring(), "linestyle": "none"}
    return [*entries, ("matched forgetting", _TARGET), (labels(results)[results["compared"]], ring)]


def _ring() -> dict[str, Any]:
    return {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 0.8}


def _draw(axes: Axes, results: Results, panel: str, sweep: Sweep, comparison: str) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    summary = results["summary"][panel]
    if sweep.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    values = list(sweep.values.values())
    axes.set_xticks(values, [f"{value:.3g}" for value in values])
    if len(values) > 5:
        axes.tick_params(axis="x", rotation=45)
    if comparison == "fixed":
        targets = [level["target"] for level in results["levels"] if level["panel"] == panel]
        axes.axhline(100 * sum(targets) / len(targets), **_TARGET, zorder=1)
    for what, look in _DRAWN.items():
        if comparison == "matched" and what == FORGET:
            continue  # it is what is matched
        points = [(value, _cell(summary[row], comparison, what)) for row, value in sweep.values.items()]
        there = [(value, cell) for value, cell in points if cell is not None]
        axes.plot([value for value, _ in there], [100 * cell["mean"] for _, cell in there], **look.line(1.3), zorder=3)
        for value, cell in there:
            low, high = cell["ci95"]
            axes.plot([value, value], [100 * low, 100 * high], color=look.colour, alpha=0.35, linewidth=1.2, zorder=2)
            axes.plot(value, 100 * cell["mean"], **look.point(), zorder=4)
        own = sweep.values.get(results["compared"])
        for value, cell in there:
            if value == own:
                axes.plot(value, 100 * cell["mean"], **_ring(), zorder=5)
    axes.margins(0.1)
    if comparison == "matched":
        _reached(axes, summary, sweep)


def _reached(axes: Axes, summary: Mapping[str, Any], sweep: Sweep) -> None:
    """How many runs reached matched forgetting, along the bottom, where not all did."""
    for row, value in sweep.values.items():
        reached, levels = summary[row]["matched"]["reached"], summary[row]["matched"]["levels"]
        at: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        if not reached:
            axes.plot(value, 0.05, marker="x", markersize=4.5, color=FAINT, markeredgewidth=1.2, **at)
        elif reached < levels:
            write(axes, value, 0.03, f"{reached}/{levels}", ha="center", va="bottom", fontsize=5.5, **at)


def _cell(entry: Mapping[str, Any], comparison: str, what: str) -> Mapping[str, Any] | None:
    quantities = entry["fixed"] if comparison == "fixed" else entry["matched"]["columns"]
    cell: Mapping[str, Any] | None = quantities.get(what)
    return cell
