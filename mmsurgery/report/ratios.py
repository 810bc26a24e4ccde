"""Figure 4: what each method costs, column by column, as more people are forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.figures.looks import ENDS
from mmsurgery.report import numbers, swatches
from mmsurgery.report.axes import Axis
from mmsurgery.report.fields import Fields
from mmsurgery.report.outcomes import is_collapsed
from mmsurgery.report.palette import style_of
from mmsurgery.report.results import ANCHORS, FORGET, PanelKey, Results
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
    up: tuple[float, float]
    """95 % interval of what was kept."""
    across: tuple[float, float]
    """That of the row's Forget VQA alone, minus vanilla's mean."""
    hollow: bool
    title: str


@dataclass(frozen=True)
class Ratios:
    """The charts of one backbone."""

    backbone: str
    pictures: Sequence[Markup]
    rows: Sequence[tuple[str, Markup]]
    """Label and line of each row, for the legend."""
    outline: str
    """What an outline says; empty where there is none."""
    gold: bool
    """Whether gold is drawn, at each ratio."""
    ratios: Sequence[int]
    """Percent forgotten, along each line."""


def ratios(results: Results) -> list[Ratios]:
    """One figure per backbone that has panels of several forget ratios."""
    found = []
    for backbone in dict.fromkeys(panel.backbone for panel in results.panels):
        panels = sorted((p for p in results.panels if p.backbone == backbone), key=lambda panel: panel.forget)
        if len({panel.forget for panel in panels}) > 1:
            found.append(_figure(results, backbone, panels))
    return found


def _figure(results: Results, backbone: str, panels: Sequence[PanelKey]) -> Ratios:
    summaries = [(panel, results.summary(panel.key)) for panel in panels]
    known = [*(c for c in ORDER if c in results.utility), *(c for c in results.utility if c not in ORDER)]
    lines = {
        column: {key: _line(results, key, column, summaries) for key in (*ANCHORS, *results.rows)} for column in known
    }
    legend = [(results.labels[key], swatches.row(look)) for key, look in results.looks.items()]
    hollow = any(at.hollow for found in lines.values() for line in found.values() for at in line)
    return Ratios(
        backbone=backbone,
        pictures=[_chart(results, results.quantity(column), found) for column, found in lines.items()],
        rows=legend,
        outline=f"{results.fallen} in at least half of its runs" if hollow else "",
        gold=any(found["gold"] for found in lines.values()),
        ratios=sorted({panel.forget for panel in panels}),
    )


def _line(
    results: Results, key: str, column: str, summaries: Sequence[tuple[PanelKey, Mapping[str, Fields]]]
) -> list[_At]:
    """A row's means at the fixed budget, from few people forgotten to many."""
    found = []
    for panel, summary in summaries:
        if key not in summary or not {FORGET, column} <= set(summary[key].get("fixed").mapping()):
            continue
        fixed, start = summary[key].get("fixed"), summary["vanilla"].get("fixed").get(FORGET).get("mean").share()
        change = fixed.get(FORGET).get("mean").share() - start
        least, most = fixed.get(FORGET).get("ci95").interval()
        kept, (low, high) = fixed.get(column).get("mean").share(), fixed.get(column).get("ci95").interval()
        title = (
            f"{results.labels[key]}, forget {panel.forget} %: Forget VQA {numbers.points(change)} points, "
            f"{results.quantity(column)} {numbers.percent(kept)}, 95 % interval {numbers.interval(low, high)}"
        )
        hollow = key not in ANCHORS and is_collapsed(summary[key])
        found.append(_At(panel.forget, change, kept, (low, high), (least - start, most - start), hollow, title))
    return found


def _chart(results: Results, title: str, lines: Mapping[str, Sequence[_At]]) -> Markup:
    shown = [at for key, found in lines.items() if key != "vanilla" for at in found]
    vanilla = [at.y for at in lines["vanilla"]]
    across = Axis([x for at in shown for x in (at.x, *at.across)], _LEFT, _RIGHT, (-1.0, 1.0))
    up = Axis([*vanilla, *(y for at in shown for y in (at.y, *at.up))], _BOTTOM, _TOP)
    parts = [text(_LEFT, 12, f"{title}, %", class_="c-title")]
    for value in up.ticks():
        parts.append(line(_LEFT, up(value), _RIGHT, up(value), "c-grid"))
        parts.append(text(_LEFT - 6, up(value) + 3.8, f"{100 * value:.0f}", "end", "c-label"))
    for value in across.ticks():
        parts.append(line(across(value), _TOP, across(value), _BOTTOM, "c-grid"))
        parts.append(text(across(value), _BOTTOM + 15, f"{100 * value:.0f}".replace("-", "−"), "middle", "c-label"))
    parts.append(text(_RIGHT, _BOTTOM + 31, "change of Forget VQA, points", "end", "c-label"))
    if vanilla:  # at 0 by definition: marks there would leave little room for the rows
        height = up(sum(vanilla) / len(vanilla))
        parts.append(line(_LEFT, height, _RIGHT, height, "level-of"))
    taken = [(across(at.x), up(at.y)) for at in shown]
    marks, labels = [], []
    for at in lines["gold"]:
        marks.append(marker(ENDS["gold"].marker, across(at.x), up(at.y), 3.4, "anchor gold", at.title))
    for key, look in results.looks.items():
        style, found = style_of(look), lines[key]
        for at in found:
            marks.append(line(across(at.x), up(at.up[0]), across(at.x), up(at.up[1]), f"bar95 {style}"))
            marks.append(line(across(at.across[0]), up(at.y), across(at.across[1]), up(at.y), f"bar95 {style}"))
        if len(found) > 1:
            marks.append(polyline([(across(at.x), up(at.y)) for at in found], f"mean thin {style}"))
        for at in found:
            x, y = across(at.x), up(at.y)
            outline = " hollow" if at.hollow else ""
            marks.append(marker(look.marker, x, y, 4.2, f"end {style}{outline}", at.title))
            place = _free(x, y, taken)
            if place is not None:
                taken.append(place)
                labels.append(text(place[0], place[1] + 3, str(at.forget), "middle", f"c-tag halo {style}"))
    return drawing(_WIDTH, _HEIGHT, f"{title} against the change of Forget VQA", *parts, element("g", *marks, *labels))


def _free(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Where a label about a point overlaps nothing; None where it would."""
    for dx, dy in ((11, 0), (-11, 0), (0, -11), (0, 11), (9, -9), (-9, -9), (9, 9), (-9, 9)):
        place = (x + dx, y + dy)
        inside = _LEFT + 4 < place[0] < _RIGHT - 2 and _TOP < place[1] < _BOTTOM - 2
        if inside and all(abs(place[0] - a) > 9.5 or abs(place[1] - b) > 8.5 for a, b in taken if (a, b) != (x, y)):
            return place
    return None
