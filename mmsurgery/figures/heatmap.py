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
from mmsurgery.names import COMPONENTS, GROUPS, Address

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
COLOURS = "viridis"
"""Perceptually uniform, its lightness rises with the value: readable in grey."""
NO_LAYER = "none"
"""Label of the row of parameters that belong to no layer."""

_CELL = (0.46, 0.26)
"""Inches, as the lengths below."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _BAR = 0.65, 0.95, 0.35, 0.7, 0.7, 0.16
_LETTER = 0.09
"""Width of a title's letter, at most, on the average."""
_ANNOTATED = 200
"""Figures of at most this many cells show their values."""


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


def faintest(heatmaps: Sequence[Heatmap]) -> float:
    """The value of the darkest colour: 0, or the smallest above 0 where colours are logarithmic."""
    if not any(heatmap.log for heatmap in heatmaps):
        return 0.0
    return min((v for heatmap in heatmaps for v in heatmap.values.ravel().tolist() if v > 0), default=0.0)


def shade(value: float, faint: float, bright: float) -> float:
    """Where a value stands between the darkest (0) and the brightest (1) colour; by its logarithm if the
    darkest is above 0, see `faintest`."""
    if faint <= 0:
        return value / bright
    return 0.0 if value <= faint else math.log(value / faint) / math.log(bright / faint)


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


def draw(heatmaps: Sequence[Heatmap], path: Path, format: str | None = None) -> None:
    """Draw heatmaps side by side on one colour scale, see `faintest`.

    The same heatmaps give the same bytes with the same version of matplotlib.

    Args:
        format: `png` or `svg`; by default the ending of `path`.

    Raises:
        UsageError: for another format, or if there is nothing to draw.
        MachineFault: if the file cannot be written.
    """
    chosen = (format or path.suffix.removeprefix(".")).lower()
    if chosen not in FORMATS:
        raise UsageError(f"'{path.name}' should end in .png or .svg", "name the picture heatmap.png")
    if not heatmaps:
        raise UsageError("there is no heatmap to draw", "name an artifact that has one")
    write_bytes(path, render(heatmaps, chosen))


def render(heatmaps: Sequence[Heatmap], format: str) -> bytes:
    """The bytes of the picture that `draw` writes."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "mmsurgery", "svg.fonttype": "none", "font.size": 8})
        figure = _figure(heatmaps)
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
        figure.savefig(buffer, format=format, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _figure(heatmaps: Sequence[Heatmap]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = [max(len(h.columns), 1) * _CELL[0] for h in heatmaps]
    heights = [max(len(h.rows), 1) * _CELL[1] for h in heatmaps]
    tall = max(*heights, 6 * _CELL[1])
    slots = [max(w, _LETTER * len(h.title)) for w, h in zip(widths, heatmaps, strict=True)]
    width = _LEFT + sum(slots) + _GAP * (len(heatmaps) - 1) + _RIGHT
    height = _TOP + tall + _BOTTOM
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    faint, brightest, left = faintest(heatmaps), scale(heatmaps), _LEFT
    annotated = sum(h.values.size for h in heatmaps) <= _ANNOTATED
    for heatmap, w, h, slot in zip(heatmaps, widths, heights, slots, strict=True):
        axes = figure.add_axes((left / width, (_BOTTOM + tall - h) / height, w / width, h / height))
        cells = _draw_one(axes, heatmap, faint, brightest, annotated)
        left += slot + _GAP
    figure.axes[0].set_ylabel("layer")
    bar = figure.add_axes(((left - _GAP + 0.2) / width, _BOTTOM / height, _BAR / width, tall / height))
    figure.colorbar(cells, cax=bar)
    bar.set_ylabel(heatmaps[0].unit, parse_math=False)
    bar.tick_params(length=2)
    bar.spines["outline"].set_visible(False)
    return figure


def _draw_one(axes: Axes, heatmap: Heatmap, faint: float, brightest: float, annotated: bool) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    norm = LogNorm(faint, brightest) if 0 < faint < brightest else Normalize(0.0, brightest)
    values = np.ma.masked_invalid(np.maximum(heatmap.values, faint))
    cells = axes.pcolormesh(values, cmap=COLOURS, norm=norm, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    axes.set_title(heatmap.title, parse_math=False, fontweight="bold", loc="left")
    middles = np.arange(max(heatmap.values.shape)) + 0.5
    columns, rows = middles[: len(heatmap.columns)], middles[: len(heatmap.rows)]
    axes.set_xticks(columns, heatmap.columns, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(rows, heatmap.rows, parse_math=False)
    axes.tick_params(length=0)
    axes.set_facecolor("0.93")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if annotated:
        for (row, column), value in np.ndenumerate(heatmap.values):
            colour = "black" if shade(value, faint, brightest) > 0.6 else "white"
            at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour, "parse_math": False}
            axes.text(column + 0.5, row + 0.5, short(float(value)), **at)
    return cells
