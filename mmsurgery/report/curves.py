"""Trade-off curves: what is forgotten against what is kept, along each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from mmsurgery.report import numbers
from mmsurgery.report.axes import Axis
from mmsurgery.report.svg import drawing, element, line, marker, polyline, text

STYLES = 8
"""Colours of series, classes `s0` to `s7` of the style; further series repeat them with another dash and marker."""
_MARKED = 60
"""Points of single levels, at most, that a series marks; beyond it their lines are drawn alone."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 412.0, 14.0, 292.0


@dataclass(frozen=True)
class Point:
    """A model somewhere along a run."""

    x: float
    """Forget VQA, 0-1."""
    y: float
    """Utility, 0-1."""
    title: str = ""


@dataclass(frozen=True)
class Series:
    """One row of a table: its runs, one per level, and their mean."""

    label: str
    style: int
    mean: Sequence[Point]
    levels: Sequence[Sequence[Point]] = ()
    """Drawn thin behind the mean; leave it empty where there is one level."""
    hollow: bool = False
    """Drawn as an outline: the row collapsed."""

    @property
    def swatch(self) -> Markup:
        """Line and marker for the legend."""
        parts = [line(1, 7, 27, 7, f"mean {style_of(self.style)}{self._look}")] if len(self.mean) > 1 else []
        mark = marker(self.style, 14, 7, 4, f"end {style_of(self.style)}{self._look}")
        return drawing(28, 14, self.label, *parts, mark, class_="swatch")

    @property
    def _look(self) -> str:
        return " hollow" if self.hollow else ""


@dataclass(frozen=True)
class Chart:
    """A chart per panel."""

    title: str
    series: Sequence[Series]
    vanilla: Sequence[Point] = ()
    gold: Sequence[Point] = ()
    targets: Sequence[float] = ()
    """Matched forgetting of each level: Forget VQA, 0-1."""
    note: str = field(default="")

    @property
    def picture(self) -> Markup:
        return draw(self)


def mean_point(points: Sequence[Point], title: str) -> Point:
    """The mean of some points."""
    x, y = (sum(values) / len(points) for values in ([p.x for p in points], [p.y for p in points]))
    return Point(x, y, f"{title}: {spoken(x, y)}")


def spoken(x: float, y: float) -> str:
    return f"Forget VQA {numbers.percent(x)}, utility {numbers.percent(y)}"


def draw(chart: Chart) -> Markup:
    """The chart as SVG: Forget VQA to the right, utility upwards, both in percent; a title on every point."""
    points = [
        *chart.vanilla,
        *chart.gold,
        *(p for series in chart.series for run in (series.mean, *series.levels) for p in run),
    ]
    across = Axis([*(p.x for p in points), *chart.targets], _LEFT, _RIGHT)
    up = Axis([p.y for p in points], _BOTTOM, _TOP)
    parts: list[str] = [*_grid(across, up)]
    for target in sorted(set(chart.targets)):
        parts.append(line(across(target), _TOP, across(target), _BOTTOM, "target"))
    if chart.targets:
        on_left = across(max(chart.targets)) > (_LEFT + _RIGHT) / 2
        x = across(min(chart.targets)) - 5 if on_left else across(max(chart.targets)) + 5
        parts.append(text(x, _BOTTOM - 6, "matched forgetting", "end" if on_left else "start", "c-label"))
    for number, series in enumerate(chart.series):
        parts.append(_series(series, number, across, up))
    for name, marks in (("vanilla", chart.vanilla), ("gold", chart.gold)):
        parts += _anchor(name, marks, across, up)
    return drawing(420, 330, f"{chart.title}: Forget VQA against utility along each run", *parts, class_="chart curves")


def _grid(across: Axis, up: Axis) -> list[Markup]:
    parts = []
    for value in up.ticks():
        parts.append(line(_LEFT, up(value), _RIGHT, up(value), "c-grid"))
        parts.append(text(_LEFT - 6, up(value) + 3.8, f"{100 * value:.0f}", "end", "c-label"))
    for value in across.ticks():
        parts.append(line(across(value), _TOP, across(value), _BOTTOM, "c-grid"))
        parts.append(text(across(value), _BOTTOM + 15, f"{100 * value:.0f}", "middle", "c-label"))
    parts.append(text(_RIGHT, _BOTTOM + 32, "Forget VQA, %: further left is forgotten more", "end", "c-label"))
    parts.append(text(_LEFT, 9, "Utility, %: higher is kept more", "start", "c-label"))
    return parts


def style_of(number: int) -> str:
    """Classes of a series' colour and dash."""
    return f"s{number % STYLES} d{number // STYLES % 3}"


def _series(series: Series, number: int, across: Axis, up: Axis) -> Markup:
    style = style_of(series.style) + (" hollow" if series.hollow else "")
    parts = []
    marked = sum(map(len, series.levels)) <= _MARKED
    for run in series.levels:
        if len(run) > 1:
            parts.append(polyline([(across(p.x), up(p.y)) for p in run], f"level {style}"))
        if marked or len(run) == 1:
            parts += [marker(0, across(p.x), up(p.y), 1.5, f"faint {style}", p.title) for p in run]
    if len(series.mean) > 1:
        parts.append(polyline([(across(p.x), up(p.y)) for p in series.mean], f"mean {style}"))
    for point in series.mean[:-1]:
        parts.append(marker(0, across(point.x), up(point.y), 2.2, f"dot {style}", point.title))
    for point in series.mean[-1:]:
        parts.append(marker(series.style, across(point.x), up(point.y), 4.6, f"end {style}", point.title))
    return element("g", *parts, class_=f"series n{number}", data_series=str(number))


def _anchor(name: str, points: Sequence[Point], across: Axis, up: Axis) -> list[Markup]:
    """Vanilla or gold: a small mark per level, a large one with its name at the mean."""
    if not points:
        return []
    shape = 1 if name == "vanilla" else 3
    parts = [marker(shape, across(p.x), up(p.y), 2.2, "anchor faint", p.title) for p in points if len(points) > 1]
    middle = mean_point(points, name if len(points) == 1 else f"{name}, mean of {len(points)}")
    x, y = across(middle.x), up(middle.y)
    parts.append(marker(shape, x, y, 5, "anchor", middle.title))
    on_left = x > (_LEFT + _RIGHT) / 2
    parts.append(text(x + (-10 if on_left else 10), y + 4, name, "end" if on_left else "start", "c-title halo"))
    return parts
