"""What figures of experiments share: their colours and markers, their legend, their bytes."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.errors import printable
from mmsurgery.figures import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
"""An experiment's results file."""

COLUMN, PAGE = 3.35, 6.9
"""Inches: widths of a paper's column and of its text, as the lengths below."""
FORGET = "forget_vqa"
INK, FAINT = looks.INK.light, looks.FAINT.light
LEGEND_LINE = 0.16

_LETTER = 0.052
"""Width of a letter of the figures' text, on the average."""


_CODES: Mapping[str, str] = {
    "circle": "o",
    "up": "^",
    "down": "v",
    "cross": "X",
    "plus": "P",
    "left": "<",
    "right": ">",
    "pentagon": "p",
    "square": "s",
    "diamond": "D",
}
"""What matplotlib calls the markers of `looks`."""


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


def style_of(look: looks.Look) -> Style:
    """A look as matplotlib draws it, on white."""
    dash = looks.DASHES[look.dash]
    return Style(looks.ROWS[look.colour].light, _CODES[look.marker], (0, dash) if dash else "-")


def end_point(name: str, size: float = 5.5) -> dict[str, Any]:
    """Keywords for the marker of `vanilla` (a square) or `gold` (a diamond)."""
    end = looks.ENDS[name]
    mark = Style(end.fill.light, _CODES[end.marker]).point(size=size)
    return {**mark, "markeredgecolor": INK, "linestyle": "none"}


def styles(results: Results) -> dict[str, Style]:
    """Row key -> style."""
    found = looks.row_looks([row["key"] for row in results["rows"]], results["compared"])
    return {key: style_of(look) for key, look in found.items()}


def labels(results: Results) -> dict[str, str]:
    """Row key -> label, `vanilla` and `gold` first."""
    return {"vanilla": "vanilla", "gold": "gold", **{row["key"]: row["label"] for row in results["rows"]}}


def title_of(results: Results, panel: str) -> str:
    """A panel's label."""
    return str(next(each["label"] for each in results["panels"] if each["key"] == panel))


def collapsed(summary: Mapping[str, Any]) -> bool:
    """Whether at least half of a row's runs collapsed."""
    return bool(summary["collapsed"]) and 2 * summary["collapsed"] >= summary["cells"]


def fallen(results: Results) -> str:
    """What a run is that no longer answers what it should have kept: `collapsed`, or `at chance`."""
    return looks.fallen(any(entry["outcomes"] for panel in results["summary"].values() for entry in panel.values()))


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


_TITLE_LINE = 0.15
_TITLE_LETTER = 0.063
"""Inches: a line of a figure's title, and a letter of it on the average."""


@dataclass(frozen=True)
class Title:
    """What a figure is a picture of, in lines above it."""

    lines: Sequence[str]

    @classmethod
    def of(cls, results: Results, what: str, width: float) -> Title:
        """The experiment and what the figure is of, broken to a width in inches."""
        return cls(textwrap.wrap(printable(f"{results['title']}, {what}"), max(20, int(width / _TITLE_LETTER))))

    @property
    def room(self) -> float:
        """Inches that it takes."""
        return _TITLE_LINE * len(self.lines) + 0.08

    def draw(self, figure: Figure) -> None:
        width, high = figure.get_size_inches()
        for place, line in enumerate(self.lines):
            y = high - _TITLE_LINE * (place + 0.5) - 0.04
            write(figure, 0.08 / width, y / high, line, va="center_baseline", fontweight="bold", fontsize=8)


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
