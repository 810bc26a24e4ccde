"""Figure 4: what each method costs, column by column, as more people are forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.report import numbers
from mmsurgery.report.axes import Axis
from mmsurgery.report.curves import style_of
from mmsurgery.report.fields import Fields
from mmsurgery.report.outcomes import is_collapsed
from mmsurgery.report.results import FORGET, PanelKey, Results
from mmsurgery.report.svg import drawing, element, line, marker, polyline, text

ORDER = ("retain_vqa", "realworld_vqa", "forget_qa", "retain_qa", "realworld_qa")
"""The paper's order of its five charts."""
_WIDTH, _HEIGHT = 206.0, 224.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 26.0, 202.0, 22.0, 190.0


@dataclass(frozen=True)
class _At:
    """A row at a forget ratio."""

    forget: int
    x: float
    """Forget VQA minus vanilla's."""
    y: float
    title: str


@dataclass(frozen=True)
class Ratios:
    """The charts of one backbone."""

    backbone: str
    pictures: Sequence[Markup]
    rows: Sequence[tuple[str, Markup]]
    """Label and line of each row, for the legend."""
    collapsed: bool
    """Whether an outline is drawn."""
    ratios: Sequence[tuple[int, Markup]]
    """Percent forgotten, and its marker."""


def ratios(results: Results) -> list[Ratios]:
    """One figure per backbone that has panels of several forget ratios."""
    found = []
    for backbone in dict.fromkeys(panel.backbone for panel in results.panels):
        panels = sorted((p for p in results.panels if p.backbone == backbone), key=lambda panel: panel.forget)
        if len({panel.forget for panel in panels}) > 1:
            found.append(_figure(results, backbone, panels))
    return found


def _figure(results: Results, backbone: str, panels: Sequence[PanelKey]) -> Ratios:
    shapes = {forget: place for place, forget in enumerate(sorted({panel.forget for panel in panels}))}
    summaries = [(panel, results.summary(panel.key)) for panel in panels]
    styles = {key: place for place, key in enumerate(results.rows)}
    known = [*(c for c in ORDER if c in results.utility), *(c for c in results.utility if c not in ORDER)]
    hollow = {
        key: any(is_collapsed(summary[key]) for _, summary in summaries if key in summary) for key in results.rows
    }
    pictures = [
        _chart(
            results.quantity(column),
            {key: _line(results, key, column, summaries) for key in results.rows},
            styles,
            shapes,
            hollow,
        )
        for column in known
    ]
    legend = [
        (label, drawing(28, 14, label, line(1, 7, 27, 7, f"mean {style_of(styles[key])}"), class_="swatch"))
        for key, label in results.labels.items()
        if key in styles
    ]
    marks = [
        (forget, drawing(16, 14, f"{forget} %", marker(shape, 8, 7, 4.4, "anchor"), class_="swatch"))
        for forget, shape in shapes.items()
    ]
    return Ratios(backbone, pictures, legend, any(hollow.values()), marks)


def _line(
    results: Results, key: str, column: str, summaries: Sequence[tuple[PanelKey, Mapping[str, Fields]]]
) -> list[_At]:
    """A row's means at the fixed budget, from few people forgotten to many."""
    found = []
    for panel, summary in summaries:
        if key not in summary or not {FORGET, column} <= set(summary[key].get("fixed").mapping()):
            continue
        fixed = summary[key].get("fixed")
        change = fixed.get(FORGET).get("mean").share()
        change -= summary["vanilla"].get("fixed").get(FORGET).get("mean").share()
        kept, (low, high) = fixed.get(column).get("mean").share(), fixed.get(column).get("ci95").interval()
        title = (
            f"{results.labels[key]}, forget {panel.forget} %: Forget VQA {numbers.points(change)} points, "
            f"{results.quantity(column)} {numbers.percent(kept)}, 95 % interval {numbers.interval(low, high)}"
        )
        found.append(_At(panel.forget, change, kept, title))
    return found


def _chart(
    title: str,
    lines: Mapping[str, Sequence[_At]],
    styles: Mapping[str, int],
    shapes: Mapping[int, int],
    hollow: Mapping[str, bool],
) -> Markup:
    points = [at for found in lines.values() for at in found]
    across = Axis([at.x for at in points], _LEFT, _RIGHT, (-1.0, 1.0), most=4)
    up = Axis([at.y for at in points], _BOTTOM, _TOP, most=4)
    parts = [text(_LEFT, 12, f"{title}, %", class_="c-title")]
    for value in up.ticks():
        parts.append(line(_LEFT, up(value), _RIGHT, up(value), "c-grid"))
        parts.append(text(_LEFT - 6, up(value) + 3.8, f"{100 * value:.0f}", "end", "c-label"))
    for value in across.ticks():
        parts.append(line(across(value), _TOP, across(value), _BOTTOM, "c-grid"))
        parts.append(text(across(value), _BOTTOM + 15, f"{100 * value:.0f}".replace("-", "−"), "middle", "c-label"))
    parts.append(text(_RIGHT, _BOTTOM + 31, "change of Forget VQA, points", "end", "c-label"))
    taken = [(across(at.x), up(at.y)) for at in points]
    marks, labels = [], []
    for key, found in lines.items():
        look = style_of(styles[key]) + (" hollow" if hollow[key] else "")
        if len(found) > 1:
            marks.append(polyline([(across(at.x), up(at.y)) for at in found], f"mean thin {look}"))
        for at in found:
            x, y = across(at.x), up(at.y)
            marks.append(marker(shapes[at.forget], x, y, 4.2, f"end {look}", at.title))
            place = _free(x, y, taken)
            if place is not None:
                taken.append(place)
                labels.append(
                    text(place[0], place[1] + 3, str(at.forget), "middle", f"c-tag halo {style_of(styles[key])}")
                )
    return drawing(_WIDTH, _HEIGHT, f"{title} against the change of Forget VQA", *parts, element("g", *marks, *labels))


def _free(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Where a label about a point overlaps nothing; None where it would."""
    for dx, dy in ((11, 0), (-11, 0), (0, -11), (0, 11), (9, -9), (-9, -9), (9, 9), (-9, 9)):
        place = (x + dx, y + dy)
        inside = _LEFT + 4 < place[0] < _RIGHT - 2 and _TOP < place[1] < _BOTTOM - 2
        if inside and all(abs(place[0] - a) > 9.5 or abs(place[1] - b) > 8.5 for a, b in taken if (a, b) != (x, y)):
            return place
    return None
