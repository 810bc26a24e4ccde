"""Heatmaps of layers by components: every cell says its number on hover, and by keyboard where scripts run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from mmsurgery.figures.heatmap import DECADES, NO_LAYER, Heatmap, faintest, named, scale, shade
from mmsurgery.figures.looks import HEAT
from mmsurgery.names import Address
from mmsurgery.report import numbers
from mmsurgery.report.palette import DARK
from mmsurgery.report.svg import drawing, element, rect, text

_STEPS = len(HEAT) - 1
"""Of the colours of a heatmap, classes `h0` and on of the style."""
_LABELLED = 260
"""Heatmaps of at most this many cells together show their values."""
_MOST = 8
"""Layers across with values written on the cells, at most."""
_NAMES = 58.0
"""Room for the names of components."""

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
        self.faint = faintest(maps, DECADES)

    def step(self, value: float) -> int:
        return round(_STEPS * shade(value, self.faint, self.bright))

    @property
    def legend(self) -> Markup:
        """The scale itself."""
        parts = [rect(4 + 6.6 * step, 4, 6.8, 10, f"h{step}") for step in range(_STEPS + 1)]
        low = numbers.percent(self.faint) if self.faint else "0 %"
        parts.append(text(4, 27, low, class_="c-label"))
        parts.append(text(130, 27, numbers.percent(self.bright), "end", "c-label"))
        kind = "logarithmic colour scale" if self.faint else "colour scale"  # the darkest is that or less
        return drawing(150, 32, f"{kind} from {low} to {numbers.percent(self.bright)}", *parts, class_="scale")


def heatmaps(
    maps: Sequence[Heatmap],
    sizes: Mapping[Address, int],
    said: Said = share_said,
    colours: Colours | None = None,
    *,
    across: bool = False,
) -> list[Markup]:
    """One picture per module group, and the colour scale where it is theirs alone.

    Args:
        maps: of one model; the group is the first word of the title.
        sizes: weights of each cell.
        colours: of all that is compared with these; by default their own.
        across: layers from left to right, where many are stacked; by default from top to bottom, as in pictures of
            single artifacts.
    """
    if not maps:
        return []
    shared, colours = colours is not None, colours or Colours(maps)
    valued = sum(each.values.size for each in maps) <= _LABELLED
    valued = valued and not (across and any(len(each.rows) > _MOST for each in maps))
    pictures = [_heatmap(each, sizes, said, colours, valued, across) for each in maps]
    return pictures if shared else [*pictures, colours.legend]


def _heatmap(
    heatmap: Heatmap, sizes: Mapping[Address, int], said: Said, colours: Colours, valued: bool, across: bool
) -> Markup:
    left, top = _NAMES if across else 34.0, 22.0
    width, height = (37.0, 22.0) if valued else (13.0, 13.0) if across else (30.0, 12.0)
    lines, columns = (heatmap.columns, heatmap.rows) if across else (heatmap.rows, heatmap.columns)
    grid = heatmap.values.T if across else heatmap.values
    group = heatmap.title.split(" ")[0]
    parts = [text(left, 13, heatmap.title, class_="c-title")]
    values: list[Markup] = []
    for r, name in enumerate(lines):
        middle = top + (r + 0.5) * height + 3.8
        parts.append(text(left - 6, middle, name, "end", "c-label"))
        cells = []
        for c, other in enumerate(columns):
            value = float(grid[r, c])
            if math.isnan(value):
                continue
            layer, component = (other, name) if across else (name, other)
            address = Address(group, None if layer == NO_LAYER else int(layer), component)
            x, step = left + c * width, colours.step(value)
            title = f"{address.layer_key}, {component}: {said(value, sizes[address])}"
            cells.append(rect(x, top + r * height, width - 1, height - 1, f"h{step}", title))
            if valued:
                look = "c-value on" if step <= DARK else "c-value"
                values.append(text(x + width / 2, middle, _short(value), "middle", look))
        parts.append(element("g", *cells, class_="cells"))
    bottom = top + len(lines) * height
    parts += _layers(columns, left, bottom + 13, width) if across else _components(columns, left, bottom + 8, width)
    wide = max(left + len(columns) * width + 12, left + 9 * len(heatmap.title))
    label = f"{heatmap.title}: {heatmap.unit}, {'components by layers' if across else 'layers by components'}"
    return drawing(wide, bottom + (20 if across else 52), label, *parts, *values, class_="heat")


def _layers(names: Sequence[str], left: float, foot: float, width: float) -> list[Markup]:
    """Names below a heatmap of layers across, so many that they have room."""
    parts = [text(left - 6, foot, "layer", "end", "c-label")]
    for place in named(len(names), math.ceil(20 / width)):
        parts.append(text(left + (place + 0.5) * width - 0.5, foot, names[place], "middle", "c-label"))
    return parts


def _components(names: Sequence[str], left: float, foot: float, width: float) -> list[Markup]:
    places = [(left + (place + 0.5) * width + 3, name) for place, name in enumerate(names)]
    return [text(x, foot, name, "end", "c-label", transform=f"rotate(-40 {x:.1f} {foot:.1f})") for x, name in places]


def _short(value: float) -> str:
    """Percent in at most four characters."""
    percent = 100 * value
    return f"{percent:.0f}" if percent >= 9.95 or percent == 0 else "<.1" if percent < 0.05 else f"{percent:.1f}"
