"""What figures of experiments share: their colours and markers, their legend, their bytes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
"""An experiment's results file."""

COLUMN, PAGE = 3.35, 6.9
"""Inches: widths of a paper's column and of its text, as the lengths below."""
FORGET = "forget_vqa"
INK, FAINT = "#222222", "#9a9a9a"
LEGEND_LINE = 0.16

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00")
"""Of Okabe and Ito, told apart by colour-blind people too; black is for the row that the others are compared with."""
_MARKERS = ("^", "v", "X", "P", "<", ">", "p")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
_LETTER = 0.052
"""Width of a letter of the figures' text, on the average."""


@dataclass(frozen=True)
class Style:
    """How a row is drawn, the same in every figure of an experiment."""

    colour: str
    marker: str
    dash: Any = "-"

    def point(self, *, hollow: bool = False, size: float = 5.0) -> dict[str, Any]:
        """Keywords for a marker."""
        return {
            "marker": self.marker,
            "markersize": size,
            "markerfacecolor": "white" if hollow else self.colour,
            "markeredgecolor": self.colour if hollow else "white",
            "markeredgewidth": 1.1 if hollow else 0.5,
        }

    def line(self, width: float) -> dict[str, Any]:
        """Keywords for a line."""
        return {"color": self.colour, "linestyle": self.dash, "linewidth": width}


ENDS = {"vanilla": Style("#666666", "s"), "gold": Style("#F0C000", "D")}


def end_point(name: str, size: float = 5.5) -> dict[str, Any]:
    """Keywords for the marker of `vanilla` (a square) or `gold` (a diamond)."""
    return {**ENDS[name].point(size=size), "markeredgecolor": INK, "linestyle": "none"}


def styles(results: Results) -> dict[str, Style]:
    """Row key -> style."""
    found, place = {}, 0
    for row in results["rows"]:
        if row["key"] == results["compared"]:
            found[row["key"]] = Style("#000000", "o")
            continue
        turn = place // len(_COLOURS)
        found[row["key"]] = Style(
            _COLOURS[place % len(_COLOURS)], _MARKERS[(place + turn) % len(_MARKERS)], _DASHES[turn % len(_DASHES)]
        )
        place += 1
    return found


def labels(results: Results) -> dict[str, str]:
    """Row key -> label, `vanilla` and `gold` first."""
    return {"vanilla": "vanilla", "gold": "gold", **{row["key"]: row["label"] for row in results["rows"]}}


def title_of(results: Results, panel: str) -> str:
    """A panel's label."""
    return str(next(each["label"] for each in results["panels"] if each["key"] == panel))


def collapsed(summary: Mapping[str, Any]) -> bool:
    """Whether at least half of a row's runs collapsed."""
    return bool(summary["collapsed"]) and 2 * summary["collapsed"] >= summary["cells"]


Entry = tuple[str, Mapping[str, Any]]
"""Label and keywords of the line that stands before it."""


def legend_lines(entries: Sequence[Entry], width: float) -> int:
    """How many lines a legend of this width in inches takes."""
    return math.ceil(len(entries) / _legend_columns(entries, width))


def _legend_columns(entries: Sequence[Entry], width: float) -> int:
    longest = max(len(label) for label, _ in entries)
    fitting = max(1, int(width / (0.4 + _LETTER * longest)))
    return math.ceil(len(entries) / math.ceil(len(entries) / fitting))


def legend(figure: Figure, entries: Sequence[Entry], left: float, top: float, width: float) -> None:
    """A legend below `top`, read column by column; lengths in inches from the figure's left and bottom."""
    from matplotlib.lines import Line2D

    whole, high = figure.get_size_inches()
    columns = _legend_columns(entries, width)
    lines = math.ceil(len(entries) / columns)
    for place, (label, keywords) in enumerate(entries):
        x = left + (place // lines) * width / columns
        y = top - (place % lines + 0.5) * LEGEND_LINE
        ends = [x / whole, (x + 0.14) / whole, (x + 0.28) / whole]
        drawn = {"solid_capstyle": "butt", "markevery": [1], **keywords}
        figure.add_artist(Line2D(ends, [y / high] * 3, transform=figure.transFigure, **drawn))
        write(figure, (x + 0.34) / whole, y / high, label, va="center_baseline")


def write(where: Axes | Figure, x: float, y: float, text: str, **keywords: Any) -> None:
    """Text of anyone's, letter by letter."""
    where.text(x, y, printable(text), parse_math=False, **keywords)


def box(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, with a grid and without a frame."""
    whole, high = figure.get_size_inches()
    axes = figure.add_axes((left / whole, bottom / high, width / whole, height / high))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2, width=0.6, color="0.6", pad=2)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("0.6")
        spine.set_linewidth(0.6)
    return axes


def whole_percents(axes: Axes) -> None:
    """Ticks upwards at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def heading(axes: Axes, text: str) -> None:
    """A title above the left end of axes."""
    axes.set_title(printable(text), parse_math=False, fontweight="bold", loc="left", fontsize=7.5, pad=4)


def sheet(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def render(make: Callable[[], Figure], format: str) -> bytes:
    """The bytes of a figure as `png` or `svg`, the same each time with one version of matplotlib."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it in PNG, SVG keeps the letter
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "mmsurgery",
                "svg.fonttype": "none",
                "font.size": 7,
                "axes.labelsize": 7,
                "xtick.labelsize": 6.5,
                "ytick.labelsize": 6.5,
                "text.color": INK,
                "axes.labelcolor": INK,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
            }
        )
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
        make().savefig(buffer, format=format, dpi=200, metadata=metadata)
    return buffer.getvalue()
