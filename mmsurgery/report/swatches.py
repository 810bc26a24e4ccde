"""Little pictures that stand in legends before what they mean."""

from __future__ import annotations

from markupsafe import Markup

from mmsurgery.figures.looks import COMPARED, ENDS, Look
from mmsurgery.report.palette import style_of
from mmsurgery.report.svg import element, line, marker


def row(look: Look, *, lined: bool = True, hollow: bool = False) -> Markup:
    """A row's line and marker."""
    style = style_of(look)
    parts = [line(1, 7, 27, 7, f"mean {style}")] if lined else []
    mark = marker(look.marker, 14, 7, 4, f"end {style}{' hollow' if hollow else ''}")
    return _swatch(*parts, mark)


def end(name: str) -> Markup:
    """The mark of `vanilla` or `gold`."""
    return _swatch(marker(ENDS[name].marker, 14, 7, 4.4, f"anchor {name}"))


def target() -> Markup:
    """Where rows are compared at matched forgetting."""
    return _swatch(line(14, 0, 14, 14, "target"))


def beyond() -> Markup:
    """How runs go on beyond the fixed budget."""
    return _swatch(line(1, 7, 27, 7, "mean beyond plain"))


def outline() -> Markup:
    """The marker of a row that collapsed."""
    return _swatch(marker("circle", 14, 7, 4, "end hollow plain"))


def ring() -> Markup:
    """About the row that the others are compared with."""
    return _swatch(marker(COMPARED.marker, 14, 7, 6, "ring"))


def level() -> Markup:
    """Vanilla's mean where it is a line."""
    return _swatch(line(1, 7, 27, 7, "level-of"))


def _swatch(*parts: Markup) -> Markup:
    """Without a name: it stands before one."""
    size = {"viewBox": "0 0 28 14", "width": "28", "height": "14"}
    return element("svg", *parts, class_="swatch", aria_hidden="true", **size)
