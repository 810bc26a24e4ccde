"""Groups of rows that are one number varied: its value against what is kept and what is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.figures.looks import FORGOTTEN, KEPT
from mmsurgery.report import numbers
from mmsurgery.report.axes import Axis, Scale
from mmsurgery.report.fields import Fields
from mmsurgery.report.palette import style_of
from mmsurgery.report.results import FORGET, UTILITY, Results
from mmsurgery.report.svg import drawing, line, marker, polyline, text

Reading = Callable[[Fields], float | None]


def _of_mask(key: str) -> Reading:
    def read(row: Fields) -> float | None:
        mask = row.get("mask") if row.has("mask") else None
        return mask.get(key).number() if mask is not None and mask.has(key) else None

    return read


def _of_row(key: str) -> Reading:
    return lambda row: row.get(key).number() if row.has(key) else None


NUMBERS: Mapping[str, Reading] = {
    "beta": _of_mask("beta"),
    "density": _of_mask("density"),
    "forget weight": _of_row("forget_weight"),
    "retain samples a step": _of_row("retain_batch"),
    "learning rate": _of_row("learning_rate"),
}
"""What may be swept, and where a row says its value."""
_WIDTH, _HEIGHT = 232.0, 186.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 28.0, 228.0, 20.0, 150.0


@dataclass(frozen=True)
class Sweep:
    group: str
    number: str
    picture: Markup


def sweeps(results: Results, panel: str) -> list[Sweep]:
    """One chart per group that varies one number and nothing else of `NUMBERS`."""
    found = []
    summary = results.summary(panel)
    matched = [level.get("target").share() for level in results.levels(panel)]
    targets = [sum(matched) / len(matched)] if matched else []
    for group in dict.fromkeys(filter(None, results.groups.values())):
        keys = [key for key, its in results.groups.items() if its == group and key in summary]
        varied = _varied(results, keys)
        if varied is None:
            continue
        read, values = NUMBERS[varied], {}
        for key in [*keys, results.compared]:
            value = read(results.rows[key]) if key in results.rows else None
            if value is not None and value not in values and {UTILITY, FORGET} <= set(_fixed(summary, key)):
                values[value] = key
        if len(values) > 1:
            points = [(value, key, _fixed(summary, key)) for value, key in sorted(values.items())]
            found.append(Sweep(group, varied, _chart(results, varied, points, targets)))
    return found


def _fixed(summary: Mapping[str, Fields], key: str) -> dict[str, Fields]:
    return summary[key].get("fixed").items() if key in summary else {}


def _varied(results: Results, keys: Sequence[str]) -> str | None:
    """The one number that differs between all the rows; None where there is none or another differs too."""
    differing = []
    for name, read in NUMBERS.items():
        values = {read(results.rows[key]) for key in keys}
        if len(values) > 1:
            differing.append((name, values))
    if len(differing) != 1 or len(differing[0][1] - {None}) + (None in differing[0][1]) != len(keys):
        return None
    return differing[0][0]


def _chart(
    results: Results,
    number: str,
    points: Sequence[tuple[float, str, Mapping[str, Fields]]],
    targets: Sequence[float],
) -> Markup:
    """Each point is a value, its row, and what that scored; targets are matched forgetting."""
    ends = [end for _, _, fixed in points for key in (UTILITY, FORGET) for end in fixed[key].get("ci95").interval()]
    across = Scale([value for value, _, _ in points], _LEFT, _RIGHT)
    up = Axis([*ends, *targets], _BOTTOM, _TOP, most=5)
    parts = []
    for value in up.ticks():
        parts.append(line(_LEFT, up(value), _RIGHT, up(value), "c-grid"))
        parts.append(text(_LEFT - 6, up(value) + 3.8, f"{100 * value:.0f}", "end", "c-label"))
    edge = -1e9
    for value, _, _ in points:
        parts.append(line(across(value), _BOTTOM, across(value), _BOTTOM + 4, "c-grid"))
        shown = f"{value:g}".replace("-", "−")
        half = 3.4 * len(shown)
        if across(value) - half > edge:
            parts.append(text(across(value), _BOTTOM + 16, shown, "middle", "c-label"))
            edge = across(value) + half + 4
    axis = f"{number}, logarithmic" if across.log else number
    parts.append(text(_RIGHT, _BOTTOM + 32, axis, "end", "c-label"))
    parts.append(text(_LEFT, 10, "%", "start", "c-label"))
    for target in targets:
        parts.append(line(_LEFT, up(target), _RIGHT, up(target), "target"))
    for key, name, look in ((UTILITY, "utility", KEPT), (FORGET, "Forget VQA", FORGOTTEN)):
        style = style_of(look)
        means = [(value, row, fixed[key].get("mean").share(), fixed[key]) for value, row, fixed in points]
        parts.append(polyline([(across(value), up(mean)) for value, _, mean, _ in means], f"mean {style}"))
        for value, row, mean, cell in means:
            low, high = cell.get("ci95").interval()
            said = f"{results.labels[row]}, {number} {value:g}: {name} {numbers.percent(mean)}, "
            said += numbers.interval(low, high)
            parts.append(line(across(value), up(low), across(value), up(high), f"bar95 {style}"))
            parts.append(marker(look.marker, across(value), up(mean), 4, f"end {style}", said))
            if row == results.compared:
                parts.append(marker("circle", across(value), up(mean), 7.5, "ring"))
    return drawing(_WIDTH, _HEIGHT, f"utility and Forget VQA by {number}", *parts)
