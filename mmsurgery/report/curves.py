"""Trade-off curves: what is forgotten against what is kept, along each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from mmsurgery.figures.looks import ENDS, Look
from mmsurgery.report import numbers, swatches
from mmsurgery.report.axes import Axis
from mmsurgery.report.palette import style_of
from mmsurgery.report.svg import drawing, element, line, marker, polyline, text

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
class Along:
    """A run, or the mean of some."""

    within: Sequence[Point]
    """Up to the end of the fixed budget."""
    beyond: Sequence[Point] = ()
    """After it, where the run was searched on for matched forgetting."""


@dataclass(frozen=True)
class Series:
    """One row of a table: its runs, one per level, and their mean."""

    label: str
    look: Look
    mean: Along
    levels: Sequence[Along] = ()
    """Drawn thin behind the mean; leave it empty where there is one level."""
    hollow: bool = False
    """Whether its marker is an outline: the row collapsed."""
    end: Point | None = None
    """Where its marker stands; by default where the mean's budget ends."""

    @property
    def swatch(self) -> Markup:
        """Line and marker for the legend."""
        return swatches.row(self.look, lined=len(self.mean.within) > 1, hollow=self.hollow)


@dataclass(frozen=True)
class Chart:
    """A chart per panel."""

    title: str
    series: Sequence[Series]
    vanilla: Sequence[Point] = ()
    gold: Sequence[Point] = ()
    targets: Sequence[float] = ()
    """Matched forgetting of each level: Forget VQA, 0-1."""

    @property
    def continued(self) -> bool:
        """Whether some run goes on beyond the fixed budget."""
        return any(run.beyond for series in self.series for run in (series.mean, *series.levels))

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
    runs = [run for series in chart.series for run in (series.mean, *series.levels)]
    ends = [series.end for series in chart.series if series.end is not None]
    points = [*chart.vanilla, *chart.gold, *ends, *(p for run in runs for p in (*run.within, *run.beyond))]
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
    taken = [at for run in runs for at in _course([(across(p.x), up(p.y)) for p in (*run.within, *run.beyond)])]
    for name, marks in (("vanilla", chart.vanilla), ("gold", chart.gold)):
        parts += _anchor(name, marks, across, up, taken)
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


def _series(series: Series, number: int, across: Axis, up: Axis) -> Markup:
    def places(points: Sequence[Point]) -> list[tuple[float, float]]:
        return [(across(p.x), up(p.y)) for p in points]

    style = style_of(series.look)
    parts = []
    marked = sum(len(run.within) + len(run.beyond) for run in series.levels) <= _MARKED
    for run in (*series.levels, series.mean):
        look = "mean" if run is series.mean else "level"
        if len(run.within) > 1:
            parts.append(polyline(places(run.within), f"{look} {style}"))
        if run.beyond:
            parts.append(polyline(places([*run.within[-1:], *run.beyond]), f"{look} beyond s{series.look.colour}"))
        if look == "level" and (marked or len(run.within) == 1):
            parts += [
                marker("circle", across(p.x), up(p.y), 1.5, f"faint {style}", p.title)
                for p in (*run.within, *run.beyond)
            ]
    for point in (*series.mean.within, *series.mean.beyond):
        parts.append(marker("circle", across(point.x), up(point.y), 2.2, f"dot {style}", point.title))
    for end in [series.end] if series.end is not None else series.mean.within[-1:]:
        hollow = " hollow" if series.hollow else ""
        parts.append(marker(series.look.marker, across(end.x), up(end.y), 4.6, f"end {style}{hollow}", end.title))
    return element("g", *parts, class_=f"series n{number}", data_series=str(number))


Place = tuple[float, float]


def _anchor(name: str, points: Sequence[Point], across: Axis, up: Axis, taken: Sequence[Place]) -> list[Markup]:
    """Vanilla or gold: a small mark per level, a large one with its name at the mean."""
    if not points:
        return []
    shape, look = ENDS[name].marker, f"anchor {name}"
    parts = [marker(shape, across(p.x), up(p.y), 2.2, f"{look} faint", p.title) for p in points if len(points) > 1]
    middle = mean_point(points, name if len(points) == 1 else f"{name}, mean of {len(points)}")
    x, y = across(middle.x), up(middle.y)
    parts.append(marker(shape, x, y, 4.4, look, middle.title))
    left, base = free_place(x, y, _LETTER * len(name), taken)
    parts.append(text(left, base, name, "start", "c-title halo"))
    return parts


_LETTER, _HIGH = 6.6, 11.0
"""Width of a letter of the chart's bold text, on the average, and the height of a line of it."""


def free_place(x: float, y: float, width: float, taken: Sequence[Place]) -> Place:
    """Where a name about a mark begins so that it covers the fewest of some places: above, right, left, or below."""
    found = [(x - width / 2, y - 9), (x + 9, y + 4), (x - 9 - width, y + 4), (x - width / 2, y + 9 + _HIGH - 2)]
    inside = [(left, base) for left, base in found if left > _LEFT and left + width < _RIGHT + 8 and base - _HIGH > 0]

    def covered(place: Place) -> int:
        left, base = place
        return sum(left - 2 < a < left + width + 2 and base - _HIGH < b < base + 3 for a, b in taken)

    return min(inside or found, key=covered)


def _course(points: Sequence[Place]) -> list[Place]:
    """Places along a line, a few units from each other."""
    found = list(points[:1])
    for (a, b), (c, d) in pairwise(points):
        steps = max(1, math.ceil(math.hypot(c - a, d - b) / 3))
        found += [(a + (c - a) * k / steps, b + (d - b) * k / steps) for k in range(1, steps + 1)]
    return found
