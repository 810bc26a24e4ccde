"""Heatmaps in a terminal: colours where there are colours, digits where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.style import Style
from rich.text import Text

from mmsurgery.errors import printable
from mmsurgery.figures.heatmap import NO_LAYER, Heatmap, faintest, scale, shade, short

# viridis, as the pictures
_COLOURS = [
    bytes.fromhex(
        "440154 481668 482878 443983 3e4989 375a8c 31688e 2b758e 26828e "
        "21918c 1f9e89 25ab82 35b779 4ec36b 6ece58 90d743 b5de2b dae319 fde725"
    )[i : i + 3]
    for i in range(0, 57, 3)
]
_TALL = 12
"""Heatmaps with more rows are drawn two rows to a line."""


def render(*heatmaps: Heatmap) -> RenderableType:
    """Heatmaps one below the other on one colour scale, and its legend.

    With colours: a coloured cell with its value per layer, or for tall heatmaps two layers to a line
    by half blocks. Without: a digit per cell, tenths of the scale. Empty where a cell does not
    exist.
    """
    return _Terminal(heatmaps)


class _Terminal:
    def __init__(self, heatmaps: Sequence[Heatmap]) -> None:
        self.heatmaps = heatmaps
        self.least, self.largest = faintest(heatmaps), scale(heatmaps)

    def _share(self, value: float) -> float:
        return shade(value, self.least, self.largest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        coloured = console.color_system in ("256", "truecolor") and not console.no_color
        for heatmap in self.heatmaps:
            yield from self._header(heatmap)
            if not coloured:
                yield from self._digits(heatmap)
            elif len(heatmap.rows) > _TALL and not options.ascii_only:
                yield from self._halves(heatmap)
            else:
                yield from self._numbers(heatmap)
            yield Text()
        if self.heatmaps:
            yield self._legend(coloured)

    def _header(self, heatmap: Heatmap) -> Iterator[Text]:
        yield Text(printable(heatmap.title), style="bold")
        parts = [column.partition(".") for column in heatmap.columns]
        lines = [[head for head, _, _ in parts], [tail for _, _, tail in parts]]
        for cells in lines if any(lines[1]) else lines[:1]:
            margin = " " * (_margin(heatmap) + 1)
            line = margin + " ".join(cell.center(w) for cell, w in zip(cells, _widths(heatmap), strict=True))
            yield Text(line.rstrip(), style="dim", no_wrap=True)

    def _digits(self, heatmap: Heatmap) -> Iterator[Text]:
        for row, label in enumerate(heatmap.rows):
            line = Text(label.rjust(_margin(heatmap)) + " ", no_wrap=True)
            for value, width in zip(heatmap.values[row].tolist(), _widths(heatmap), strict=True):
                digit = "" if math.isnan(value) else str(min(9, int(10 * self._share(value))))
                line.append(digit.center(width) + " ")
            line.rstrip()
            yield line

    def _numbers(self, heatmap: Heatmap) -> Iterator[Text]:
        for row, label in enumerate(heatmap.rows):
            line = Text(label.rjust(_margin(heatmap)) + " ", no_wrap=True)
            for value, width in zip(heatmap.values[row].tolist(), _widths(heatmap), strict=True):
                line.append(short(value).center(width), self._style(value))
                line.append(" ")
            yield line

    def _style(self, value: float) -> Style:
        if math.isnan(value):
            return Style.null()
        ink = "#000000" if self._share(value) > 0.6 else "#ffffff"
        return Style(color=ink, bgcolor=_colour(self._share(value)))

    def _halves(self, heatmap: Heatmap) -> Iterator[Text]:
        nothing = [math.nan] * len(heatmap.columns)
        rows = list(zip(heatmap.rows, heatmap.values.tolist(), strict=True))
        alone = rows[-1:] if heatmap.rows[-1] == NO_LAYER else []
        layers = rows[: len(rows) - len(alone)]
        below = [values for _, values in layers[1::2]] + [nothing]
        for (label, upper), lower in [*zip(layers[::2], below, strict=False), *((row, nothing) for row in alone)]:
            line = Text(label.rjust(_margin(heatmap)) + " ", no_wrap=True)
            for top, bottom, width in zip(upper, lower, _widths(heatmap), strict=True):
                block, style = self._half(top, bottom)
                line.append(block * width, style)
                line.append(" ")
            yield line

    def _half(self, upper: float, lower: float) -> tuple[str, Style]:
        above, below = (None if math.isnan(v) else _colour(self._share(v)) for v in (upper, lower))
        if above is None:
            return ("▄", Style(color=below)) if below else (" ", Style.null())
        return "▀", Style(color=above, bgcolor=below)

    def _legend(self, coloured: bool) -> Text:
        unit = printable(self.heatmaps[0].unit)
        if not coloured and self.least:
            return Text(f"{unit}: 9 = {short(self.largest)}, 0 = {short(self.least)}, logarithmic", style="dim")
        if not coloured:
            return Text(f"{unit}: 9 = {short(self.largest)}, 0 = under a tenth of that", style="dim")
        line = Text(f"{unit}: {short(self.least)} ")
        for step in range(24):
            line.append(" ", Style(bgcolor=_colour(step / 23)))
        return line.append(f" {short(self.largest)}")


def _margin(heatmap: Heatmap) -> int:
    return max(map(len, heatmap.rows), default=0)


def _widths(heatmap: Heatmap) -> list[int]:
    return [max(5, *map(len, column.split(".", 1))) for column in heatmap.columns]


def _colour(share: float) -> str:
    """The colour of a share of the scale, as `#rrggbb`."""
    place = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    index = min(int(place), len(_COLOURS) - 2)
    mixed = (
        round(low + (high - low) * (place - index))
        for low, high in zip(_COLOURS[index], _COLOURS[index + 1], strict=True)
    )
    return "#" + bytes(mixed).hex()
