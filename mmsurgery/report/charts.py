"""The page's charts, as inline SVG without scripts: small multiples that read in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mmsurgery.names import GROUPS
from mmsurgery.report import numbers
from mmsurgery.report.svg import drawing, element, line, rect, text


def whisker(mean: float, low: float, high: float, chance: float | None = None) -> Markup:
    """An interval from 0 to 1 beside a number: a line with a dot, a tick where guessing would be."""
    width, height, pad = 72.0, 10.0, 3.0

    def x(value: float) -> float:
        return pad + value * (width - 2 * pad)

    parts = [line(pad, 5, width - pad, 5, "w-rail")]
    if chance is not None:
        parts.append(line(x(chance), 1, x(chance), 9, "w-chance"))
    parts.append(line(x(low), 5, x(high), 5, "w-range"))
    parts.append(element("circle", cx=x(mean), cy=5, r=2.6, class_="w-dot"))
    label = f"{numbers.percent(mean)}, 95 % interval {numbers.interval(low, high)}"
    return drawing(width, height, label, *parts, class_="whisker")


def profile(layers: Mapping[str, tuple[int, int]]) -> Markup:
    """Share of weights selected, layer by layer through the model: vision, connector, language model.

    Args:
        layers: layer key (`lm.8`; a group's name for what has no layer) -> (selected, weights).
    """
    ordered = [key for group in GROUPS for key in _layers_of(group, layers)]
    left, top, height, gap, width = 40.0, 12.0, 110.0, 14.0, 430.0
    groups = [group for group in GROUPS if _layers_of(group, layers)]
    room = (width - left - gap * (len(groups) - 1) - 4) / max(len(ordered), 1)
    step = min(room, 46.0)
    highest = _round_up(max((ones / total for ones, total in layers.values() if total), default=0.0))
    parts = []
    for share in (0.0, highest / 2, highest):
        y = top + height * (1 - share / highest)
        parts += [line(left, y, width, y, "c-grid"), text(left - 6, y + 3.8, f"{100 * share:g} %", "end", "c-label")]
    x = left
    for group in groups:
        keys, start = _layers_of(group, layers), x
        for key in keys:
            ones, total = layers[key]
            share = ones / total if total else 0.0
            name = f"{key}" if key != group else f"{group}, no layer"
            bar = max(height * share / highest, 0.8)
            said = f"{name}: {numbers.percent(share)} of {numbers.count(total)} weights"
            parts.append(rect(x + 1, top + height - bar, step - 2, bar, f"g-{group}", said))
            label = key.partition(".")[2]
            if step >= 11 or (label and int(label) % 8 == 0):
                parts.append(text(x + step / 2, top + height + 13, label or "–", "middle", "c-label"))
            x += step
        parts.append(text((start + x) / 2, top + height + 29, group, "middle", "c-group"))
        x += gap
    return drawing(width, top + height + 36, "share of weights selected by layer", *parts)


def _layers_of(group: str, layers: Mapping[str, tuple[int, int]]) -> list[str]:
    keys = [key for key in layers if key.partition(".")[0] == group]
    return sorted(keys, key=lambda key: (key == group, int(key.partition(".")[2] or 0)))


def _round_up(share: float) -> float:
    """The next round number, at least 1 in 1000."""
    for power in range(-3, 1):
        for first in (1, 2, 3, 4, 5, 6, 8):
            if share <= first * 10.0**power:
                return first * 10.0**power
    return 1.0


def bar(share: float, label: str) -> Markup:
    """A share of one as a bar."""
    parts = [rect(0, 2, 120, 8, "b-rail"), rect(0, 2, 120 * share, 8, "b-fill")]
    return drawing(120, 12, label, *parts, class_="bar")


Quantiles = Mapping[str, float]


def ranges(rows: Sequence[tuple[str, str, Quantiles]]) -> Markup:
    """Quantiles on a logarithmic axis: a line from 1 to 99 %, a box of the middle half, a tick at the median.

    Args:
        rows: label, module group, share -> value; zeros are drawn at the left end.
    """
    values = [value for _, _, quantiles in rows for value in quantiles.values() if value > 0]
    low = math.floor(math.log10(min(values, default=1.0)))
    high = max(math.ceil(math.log10(max(values, default=1.0))), low + 1)
    left, right, top, step = 172.0, 426.0, 8.0, 17.0

    def x(value: float) -> float:
        return left + (right - left) * (math.log10(value) - low) / (high - low) if value > 0 else left

    bottom = top + step * len(rows)
    parts = []
    every = max(1, math.ceil((high - low) / 6))
    for power in range(low, high + 1, every):
        parts.append(line(x(10.0**power), top, x(10.0**power), bottom, "c-grid"))
        parts.append(text(x(10.0**power), bottom + 15, f"10{numbers.power(power)}", "middle", "c-label"))
    previous = ""
    for place, (label, group, quantiles) in enumerate(rows):
        y = top + step * (place + 0.5)
        if label != previous and place:
            parts.append(line(0, y - step / 2, right, y - step / 2, "c-rule"))
        if label != previous:
            shown = label if len(label) < 17 else f"{label[:8]}…{label[-7:]}"
            parts.append(text(0, y + 3.8, shown, class_="c-label strong"))
        parts.append(text(left - 6, y + 3.8, group, "end", "c-label"))
        previous = label
        ends = [quantiles.get(key, 0.0) for key in ("0.01", "0.25", "0.5", "0.75", "0.99")]
        names = ("1 %", "25 %", "median", "75 %", "99 %")
        said = ", ".join(f"{name} {numbers.scientific(end)}" for name, end in zip(names, ends, strict=True))
        parts.append(line(x(ends[0]), y, x(ends[4]), y, f"r-line g-{group}"))
        parts.append(rect(x(ends[1]), y - 4, max(x(ends[3]) - x(ends[1]), 1), 8, f"r-box g-{group}"))
        parts.append(line(x(ends[2]), y - 5, x(ends[2]), y + 5, "r-median"))
        parts.append(rect(left, y - step / 2, right - left, step, "c-hit", f"{label}, {group}: {said}"))
    return drawing(430, bottom + 24, "distribution of saliency by data part and module group", *parts)
