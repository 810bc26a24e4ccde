"""Heatmaps of layers by components: plain numbers, drawn as PNG or SVG with the same bytes each time."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.files import write_bytes
from mmsurgery.errors import UsageError
from mmsurgery.figures.looks import DARK_UNTIL
from mmsurgery.names import COMPONENTS, GROUPS, Address

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
COLOURS = "viridis"
"""Perceptually uniform, its lightness rises with the value: readable in grey."""
NO_LAYER = "none"
"""Label of the row of parameters that belong to no layer."""

DECADES = 3
"""Of stacked pictures on logarithmic colours: how far these reach."""

_CELL = (0.46, 0.26)
"""Inches, as the lengths below."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _BAR = 0.65, 0.95, 0.35, 0.7, 0.7, 0.16
_LETTER = 0.09
"""Width of a title's letter, at most, on the average."""
_SMALL, _MARGIN, _LINE, _BELOW = (0.11, 0.3, 3.6, 0.15), 0.75, 0.2, 0.45
"""Of stacked pictures: a cell's least and greatest width, the width of a heatmap whose cells are between, a cell's
height; the room for components, for a line of text, and for the layers at the foot."""
_TICK = 0.16
"""Between two labels of layers, at least."""
_ANNOTATED = 200
"""Figures of at most this many cells show their values."""


Stack = Mapping[str, "Sequence[Heatmap]"]
"""Heatmaps to be drawn one line below the other: label -> line."""


@dataclass(frozen=True)
class Heatmap:
    """Values by row and column; NaN where a cell does not exist."""

    title: str
    rows: list[str]
    """Top row first."""
    columns: list[str]
    values: np.ndarray[Any, np.dtype[np.float64]] = field(repr=False)
    """float64 `[rows, columns]`."""
    unit: str
    log: bool = False
    """Whether colours follow the logarithm of the values."""

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float64)
        if values.shape != (len(self.rows), len(self.columns)):
            raise ValueError(f"values {values.shape} for {len(self.rows)} rows and {len(self.columns)} columns")
        object.__setattr__(self, "values", values)

    def png(self, path: Path) -> None:
        """Draw as PNG, see `draw`."""
        draw([self], path, "png")

    def svg(self, path: Path) -> None:
        """Draw as SVG, see `draw`."""
        draw([self], path, "svg")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; cells that do not exist are null."""
        return {
            "title": self.title,
            "rows": self.rows,
            "columns": self.columns,
            "values": [[None if math.isnan(v) else v for v in row] for row in self.values.tolist()],
            "unit": self.unit,
        }


def by_address(cells: Mapping[Address, float], unit: str, *, log: bool = False) -> list[Heatmap]:
    """One heatmap per module group: rows are layers from 0 down, then the row without a layer; columns
    are the components the group has, in the order of `names.COMPONENTS`.

    Args:
        cells: one value per address; an address that is not there is an empty cell.
    """
    heatmaps = []
    for group in GROUPS:
        inside = {each: value for each, value in cells.items() if each.group == group}
        layers = sorted({each.layer for each in inside if each.layer is not None})
        found = {each.component for each in inside}
        columns = [component for component in COMPONENTS if component in found]
        rows: list[int | None] = [*layers, *([None] if any(each.layer is None for each in inside) else [])]
        values = [[inside.get(Address(group, row, column), math.nan) for column in columns] for row in rows]
        if rows:
            labels = [NO_LAYER if row is None else str(row) for row in rows]
            heatmaps.append(Heatmap(group, labels, columns, np.array(values), unit, log))
    return heatmaps


def scale(heatmaps: Sequence[Heatmap]) -> float:
    """The value of the brightest colour: the largest of all heatmaps, 1 where all are 0 or empty."""
    finite = [v for heatmap in heatmaps for v in heatmap.values.ravel().tolist() if math.isfinite(v)]
    return max(finite, default=0.0) or 1.0


def faintest(heatmaps: Sequence[Heatmap], decades: int | None = None) -> float:
    """The value of the darkest colour: 0, or the smallest above 0 where colours are logarithmic.

    Args:
        decades: how far below the largest value logarithmic colours reach, at most.
    """
    if not any(heatmap.log for heatmap in heatmaps):
        return 0.0
    least = min((v for heatmap in heatmaps for v in heatmap.values.ravel().tolist() if v > 0), default=0.0)
    return least if decades is None else max(least, scale(heatmaps) / 10**decades)


def shade(value: float, faint: float, bright: float) -> float:
    """Where a value stands between the darkest (0) and the brightest (1) colour; by its logarithm if the
    darkest is above 0, see `faintest`."""
    if faint <= 0:
        return value / bright
    return 0.0 if value <= faint else math.log(value / faint) / math.log(bright / faint)


def named(count: int, every: int) -> list[int]:
    """Places of so many that are named: one of so many, and the last one."""
    last = count - 1
    return [i for i in range(count) if i == last or (i % every == 0 and last - i >= every)]


def short(value: float) -> str:
    """A non-negative number in at most five characters, empty for NaN: `0.48`, `3e-4`, `12`, `1.2k`."""
    if math.isnan(value):
        return ""
    if value == 0 or value >= 1000:
        for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= factor * 0.9995:
                scaled = value / factor
                return f"{scaled:.1f}{letter}" if scaled < 9.95 else f"{scaled:.0f}{letter}"
        return "0"
    if value >= 9.995 or value == int(value):
        return f"{value:.0f}"
    if value >= 0.005:
        return f"{value:.2f}"
    return f"{value:.0e}".replace("e-0", "e-")


def draw(heatmaps: Sequence[Heatmap] | Stack, path: Path, format: str | None = None, title: str = "") -> None:
    """Draw heatmaps side by side on one colour scale, see `faintest`; of a stack one such line below the other under
    its label, with layers from left to right, so that many fit on a page.

    The same heatmaps give the same bytes with the same version of matplotlib.

    Args:
        format: `png` or `svg`; by default the ending of `path`.
        title: of a stack.

    Raises:
        UsageError: for another format, or if there is nothing to draw.
        MachineFault: if the file cannot be written.
    """
    chosen = (format or path.suffix.removeprefix(".")).lower()
    if chosen not in FORMATS:
        raise UsageError(f"'{path.name}' should end in .png or .svg", "name the picture heatmap.png")
    if not (any(heatmaps.values()) if isinstance(heatmaps, Mapping) else heatmaps):
        raise UsageError("there is no heatmap to draw", "name an artifact that has one")
    write_bytes(path, render(heatmaps, chosen, title))


def render(heatmaps: Sequence[Heatmap] | Stack, format: str, title: str = "") -> bytes:
    """The bytes of the picture that `draw` writes."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "mmsurgery", "svg.fonttype": "none", "font.size": 8})
        figure = _stacked(heatmaps, title) if isinstance(heatmaps, Mapping) else _figure(heatmaps)
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
        figure.savefig(buffer, format=format, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _figure(heatmaps: Sequence[Heatmap]) -> Figure:
    widths = [max(len(h.columns), 1) * _CELL[0] for h in heatmaps]
    heights = [max(len(h.rows), 1) * _CELL[1] for h in heatmaps]
    tall = max(*heights, 6 * _CELL[1])
    slots = [max(w, _LETTER * len(h.title)) for w, h in zip(widths, heatmaps, strict=True)]
    width = _LEFT + sum(slots) + _GAP * (len(heatmaps) - 1) + _RIGHT
    height = _TOP + tall + _BOTTOM
    figure = _blank(width, height)
    faint, brightest, left = faintest(heatmaps), scale(heatmaps), _LEFT
    annotated = sum(h.values.size for h in heatmaps) <= _ANNOTATED
    for heatmap, w, h, slot in zip(heatmaps, widths, heights, slots, strict=True):
        axes = figure.add_axes((left / width, (_BOTTOM + tall - h) / height, w / width, h / height))
        cells = _draw_one(axes, heatmap, faint, brightest, annotated)
        left += slot + _GAP
    figure.axes[0].set_ylabel("layer")
    place = ((left - _GAP + 0.2) / width, _BOTTOM / height, _BAR / width, tall / height)
    _colour_bar(figure, cells, heatmaps[0].unit, place)
    return figure


def _stacked(stack: Stack, title: str) -> Figure:
    """Lines of heatmaps with layers across, those of one place below each other; layers are named at the foot."""
    every = [h for line in stack.values() for h in line]
    faint, brightest = faintest(every, DECADES), scale(every)
    places = [[line[i] for line in stack.values() if i < len(line)] for i in range(max(map(len, stack.values())))]
    least, most, whole, tall = _SMALL
    layers = [max(1, *(len(h.rows) for h in place)) for place in places]
    sizes = [min(most, max(least, whole / count)) for count in layers]
    slots = [
        _MARGIN + max(size * count, *(_LETTER * len(h.title) for h in place))
        for size, count, place in zip(sizes, layers, places, strict=True)
    ]
    heights = [tall * max([1, *(len(h.columns) for h in line)]) for line in stack.values()]
    width = max(sum(slots) + 0.2 + _RIGHT, 0.1 + _LETTER * max(*map(len, stack), 1.15 * len(title)))
    height = sum(heights) + 3.2 * _LINE * len(stack) + _BELOW + (1.3 * _LINE if title else 0.0)
    figure, top = _blank(width, height), height
    if title:
        top -= 1.3 * _LINE
        figure.text(0.1 / width, (top + 0.4 * _LINE) / height, title, fontsize=10, fontweight="bold", parse_math=False)
    for (label, line), high in zip(stack.items(), heights, strict=True):
        figure.text(0.1 / width, (top - 0.8 * _LINE) / height, label, fontsize=9, fontweight="bold", parse_math=False)
        top, left = top - 2.2 * _LINE, _MARGIN
        for heatmap, size, slot in zip(line, sizes, slots, strict=False):
            w, h = size * max(len(heatmap.rows), 1), tall * max(len(heatmap.columns), 1)
            axes = figure.add_axes((left / width, (top - h) / height, w / width, h / height))
            cells = _draw_one(axes, heatmap, faint, brightest, False, across=math.ceil(_TICK / size))
            left += slot
        top -= high + _LINE
    last = len(figure.axes) - len([*stack.values()][-1])
    for place, axes in enumerate(figure.axes):
        axes.tick_params(labelbottom=place >= last)
        axes.set_xlabel("layer" if place >= last else "")
    bar = ((sum(slots) + 0.2) / width, (_BELOW + _LINE) / height, _BAR / width, heights[-1] / height)
    _colour_bar(figure, cells, every[0].unit, bar)
    return figure


def _blank(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _colour_bar(figure: Figure, cells: Any, unit: str, place: tuple[float, float, float, float]) -> None:
    bar = figure.add_axes(place)
    figure.colorbar(cells, cax=bar)
    bar.set_ylabel(unit, parse_math=False)
    bar.tick_params(length=2)
    bar.spines["outline"].set_visible(False)


def _draw_one(
    axes: Axes, heatmap: Heatmap, faint: float, brightest: float, annotated: bool, *, across: int | None = None
) -> Any:
    """`across`: None for layers from top to bottom; else they go from left to right, and one of so many is named."""
    from matplotlib.colors import LogNorm, Normalize

    norm = LogNorm(faint, brightest) if 0 < faint < brightest else Normalize(0.0, brightest)
    values = np.ma.masked_invalid(np.maximum(heatmap.values, faint))
    columns, rows, line = heatmap.columns, heatmap.rows, 1.0
    if across is not None:
        values, columns, rows, line = values.T, heatmap.rows, heatmap.columns, 0.5
    cells = axes.pcolormesh(values, cmap=COLOURS, norm=norm, edgecolors="white", linewidth=line)
    axes.invert_yaxis()
    titled: dict[str, Any] = {"fontweight": "bold"} if across is None else {"fontsize": 8, "pad": 3}  # below a line's
    axes.set_title(heatmap.title, parse_math=False, loc="left", **titled)
    middles = np.arange(max(heatmap.values.shape)) + 0.5
    shown = named(len(columns), across or 1)
    axes.set_xticks(
        middles[shown], [columns[i] for i in shown], rotation=45, ha="right", rotation_mode="anchor", parse_math=False
    )
    axes.set_yticks(middles[: len(rows)], rows, parse_math=False)
    axes.tick_params(length=0)
    axes.set_facecolor("0.93")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if annotated:
        for (row, column), value in np.ndenumerate(heatmap.values):
            colour = "black" if shade(value, faint, brightest) > DARK_UNTIL else "white"
            at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour, "parse_math": False}
            axes.text(column + 0.5, row + 0.5, short(float(value)), **at)
    return cells
