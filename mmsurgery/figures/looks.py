"""How results look wherever they are drawn, on the page and as PNG or SVG: one palette, one set of markers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """One colour, as `#rrggbb`."""

    light: str
    """On paper: pictures, and the page by day."""
    dark: str
    """On a dark page."""


INK = Colour("#222222", "#e4e6e8")
PAPER = Colour("#fbfaf8", "#15181c")
"""Of the page; pictures are on white."""
FAINT = Colour("#8a8f95", "#7d858d")

ROWS = (
    INK,
    Colour("#1a73d9", "#5580c4"),
    Colour("#dd6a00", "#ff7420"),
    Colour("#12705a", "#25b587"),
    Colour("#bb7fb0", "#fb93d8"),
    Colour("#2b4a63", "#62c8ff"),
    Colour("#755600", "#d8bf7a"),
    Colour("#5b1a8a", "#b070f5"),
)
"""Colours of rows, told apart by colour-blind people too and at least 3 to 1 against the paper; the first is of the row
that the others are compared with."""
DASHES = ((), (4.0, 1.5), (1.2, 1.2))
"""Dash and gap of lines, in widths of the line; the first is solid."""


def _ring(count: int, turn: float = 0.0) -> tuple[tuple[float, float], ...]:
    """Corners of a regular polygon, the first one upwards."""
    angles = [2 * math.pi * k / count + turn for k in range(count)]
    return tuple((-math.sin(a), math.cos(a)) for a in angles)


_THIRD = 1 / 3
CORNERS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "up": ((0, 1), (-1, -1), (1, -1)),
    "down": ((0, -1), (1, 1), (-1, 1)),
    "cross": (
        *((-0.5, -1), (0, -0.5), (0.5, -1), (1, -0.5), (0.5, 0), (1, 0.5)),
        *((0.5, 1), (0, 0.5), (-0.5, 1), (-1, 0.5), (-0.5, 0), (-1, -0.5)),
    ),
    "plus": (
        *((-_THIRD, -1), (_THIRD, -1), (_THIRD, -_THIRD), (1, -_THIRD), (1, _THIRD), (_THIRD, _THIRD)),
        *((_THIRD, 1), (-_THIRD, 1), (-_THIRD, _THIRD), (-1, _THIRD), (-1, -_THIRD), (-_THIRD, -_THIRD)),
    ),
    "left": ((-1, 0), (1, -1), (1, 1)),
    "right": ((1, 0), (-1, 1), (-1, -1)),
    "pentagon": _ring(5),
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "diamond": tuple((math.sqrt(2) * x, math.sqrt(2) * y) for x, y in _ring(4)),
}
"""Markers: their corners about 0, y upwards, where a circle has the radius 1."""
_OF_ROWS = ("up", "down", "cross", "plus", "left", "right", "pentagon")


@dataclass(frozen=True)
class Look:
    """How a row is drawn, the same in every figure of an experiment."""

    colour: int
    """Place in `ROWS`."""
    marker: str
    """Key of `CORNERS`."""
    dash: int = 0
    """Place in `DASHES`."""


COMPARED = Look(0, "circle")
"""Of the row that the others are compared with."""
KEPT, FORGOTTEN = Look(1, "circle"), Look(2, "up")
"""Utility and Forget VQA where a figure shows both of one row."""


def row_looks(keys: Sequence[str], compared: str) -> dict[str, Look]:
    """Row key -> look; beyond seven colours they return with another marker and dash."""
    found, place = {}, 0
    for key in keys:
        if key == compared:
            found[key] = COMPARED
            continue
        turn = place // len(_OF_ROWS)
        marker = _OF_ROWS[(place + turn) % len(_OF_ROWS)]
        found[key] = Look(1 + place % len(_OF_ROWS), marker, turn % len(DASHES))
        place += 1
    return found


@dataclass(frozen=True)
class End:
    """The mark of a model that rows lie between."""

    marker: str
    fill: Colour


ENDS = {"vanilla": End("square", Colour("#6b7178", "#9aa3ac")), "gold": End("diamond", Colour("#f0c000", "#f0c000"))}
"""Edged with ink."""


@dataclass(frozen=True)
class Outcome:
    """What an open answer can be."""

    name: str
    fill: Colour
    on: Colour
    """Of the number on its bar."""


_BLACK, _WHITE = "#111111", "#ffffff"
OUTCOMES: Mapping[str, Outcome] = {
    "correct": Outcome("correct", Colour("#0072b2", "#4ba3e0"), Colour(_WHITE, _BLACK)),
    "other_person": Outcome("another person's fact", Colour("#e69f00", "#e69f00"), Colour(_BLACK, _BLACK)),
    "wrong": Outcome("wrong but fluent", Colour("#f6d9a0", "#7d6434"), Colour(_BLACK, _WHITE)),
    "refusal": Outcome("refusal", Colour("#bbbbbb", "#666e76"), Colour(_BLACK, _WHITE)),
    "gibberish": Outcome("gibberish", Colour("#333333", "#e4e6e8"), Colour(_WHITE, _BLACK)),
}
"""In the order of the bars. What is neither right nor a person's is a tint of the paper; gibberish is ink."""

HEAT = (
    *("#440154", "#481668", "#482878", "#443983", "#3e4989", "#375a8c", "#31688e", "#2b758e", "#26828e", "#21918c"),
    *("#1f9e89", "#25ab82", "#35b779", "#4ec36b", "#6ece58", "#90d743", "#b5de2b", "#dae319", "#fde725"),
)
"""Colours of heatmaps from 0 to the largest value, by day and in the dark: matplotlib's viridis, perceptually uniform
and readable in grey."""
DARK_UNTIL = 0.6
"""Up to this part of the scale, numbers on cells are white, beyond it black."""

FIXED, BEYOND = "at the fixed budget", "searched on for matched forgetting"
"""What the marker of a row says, and its thin line beyond."""


def fallen(answered: bool) -> str:
    """What a run is that no longer answers what it should have kept. Without open answers only columns at chance can
    tell, which is no collapse yet."""
    return "collapsed" if answered else "at chance"
