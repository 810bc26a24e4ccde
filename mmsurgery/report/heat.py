"""Heatmaps of layers by components: every cell says its number on hover, and by keyboard where scripts run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from mmsurgery.figures.heatmap import NO_LAYER, Heatmap, faintest, scale, shade
from mmsurgery.names import Address
from mmsurgery.report import numbers
from mmsurgery.report.svg import drawing, element, rect, text

_STEPS = 20
"""Colours of a heatmap, classes `h0` to `h20` of the style."""
_LABELLED = 260
"""Heatmaps of at most this many cells together show their values."""
_DECADES = 1000
"""Logarithmic colours end at this part of the largest value."""

Said = Callable[[float, int], str]
"""What a cell of a value and of so many weights says."""


def share_said(value: float, weights: int) -> str:
    return f"{numbers.percent(value)} of {numbers.count(weights)} weights"


def relative_said(value: float, weights: int) -> str:
    return f"changed by {numbers.percent(value)} of its length, {numbers.count(weights)} weights"


class Colours:
    """One scale for all heatmaps that are compared, from 0 or, for logarithmic ones, from a thousandth."""

    def __init__(self, maps: Sequence[Heatmap]) -> None:
        self.bright = scale(maps)
        self.faint = max(faintest(maps), self.bright / _DECADES) if any(each.log for each in maps) else 0.0

    def step(self, value: float) -> int:
        return round(_STEPS * shade(value, self.faint, self.bright))

    @property
    def legend(self) -> Markup:
        """The scale itself."""
        parts = [rect(4 + 6 * step, 4, 6.2, 10, f"h{step}") for step in range(_STEPS + 1)]
        low = numbers.percent(self.faint) if self.faint else "0 %"
        parts.append(text(4, 27, low, class_="c-label"))
        parts.append(text(130, 27, numbers.percent(self.bright), "end", "c-label"))
        kind = "logarithmic colour scale" if self.faint else "colour scale"  # the palest is that or less
        return drawing(150, 32, f"{kind} from {low} to {numbers.percent(self.bright)}", *parts, class_="scale")


def heatmaps(
    maps: Sequence[Heatmap], sizes: Mapping[Address, int], said: Said = share_said, colours: Colours | None = None
) -> list[Markup]:
    """One picture per module group, and the colour scale where it is theirs alone.

    Args:
        maps: of one model; the group is the first word of the title.
        sizes: weights of each cell.
        colours: of all that is compared with these; by default their own.
    """
    if not maps:
        return []
    shared, colours = colours is not None, colours or Colours(maps)
    valued = sum(each.values.size for each in maps) <= _LABELLED
    pictures = [_heatmap(each, sizes, said, colours, valued) for each in maps]
    return pictures if shared else [*pictures, colours.legend]


def _heatmap(heatmap: Heatmap, sizes: Mapping[Address, int], said: Said, colours: Colours, valued: bool) -> Markup:
    left, top, bottom = 34.0, 22.0, 52.0
    width, height = (37.0, 22.0) if valued else (30.0, 12.0)
    group = heatmap.title.split(" ")[0]
    parts = [text(left, 13, heatmap.title, class_="c-title")]
    values: list[Markup] = []
    for r, row in enumerate(heatmap.rows):
        layer = None if row == NO_LAYER else int(row)
        middle = top + (r + 0.5) * height + 3.8
        parts.append(text(left - 6, middle, "–" if layer is None else row, "end", "c-label"))
        cells = []
        for c, column in enumerate(heatmap.columns):
            value = float(heatmap.values[r, c])
            if math.isnan(value):
                continue
            x, step = left + c * width, colours.step(value)
            address = Address(group, layer, column)
            title = f"{address.layer_key}, {column}: {said(value, sizes[address])}"
            cells.append(rect(x, top + r * height, width - 1, height - 1, f"h{step}", title))
            if valued:
                look = "c-value" + (" on" if step > 13 else " mid" if step > 8 else "")
                values.append(text(x + width / 2, middle, _short(value), "middle", look))
        parts.append(element("g", *cells, class_="cells"))
    foot = top + len(heatmap.rows) * height + 8
    for c, column in enumerate(heatmap.columns):
        x = left + (c + 0.5) * width + 3
        parts.append(text(x, foot, column, "end", "c-label", transform=f"rotate(-40 {x:.1f} {foot:.1f})"))
    wide = max(left + len(heatmap.columns) * width + 4, left + 9 * len(heatmap.title))
    label = f"{heatmap.title}: {heatmap.unit}, layers by components"
    return drawing(wide, top + len(heatmap.rows) * height + bottom, label, *parts, *values, class_="heat")


def _short(value: float) -> str:
    """Percent in at most four characters."""
    percent = 100 * value
    return f"{percent:.0f}" if percent >= 9.95 or percent == 0 else "<.1" if percent < 0.05 else f"{percent:.1f}"
