"""SVG elements as safe markup: every attribute and every text is escaped; colours are classes of the page's style."""

from __future__ import annotations

import functools

from markupsafe import Markup, escape

from mmsurgery.errors import printable
from mmsurgery.figures.looks import CORNERS


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """`<name attributes>children</name>`; in attributes' names underscores are dashes, a last one is dropped."""
    pairs = "".join(f' {_key(key)}="{_text(value)}"' for key, value in attributes.items())
    inside = "".join(child if isinstance(child, Markup) else _text(child) for child in children)
    return Markup(f"<{name}{pairs}>{inside}</{name}>")  # noqa: S704


@functools.cache
def _key(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _text(value: str | float) -> str:
    """Escaped, with what cannot be printed shown."""
    if isinstance(value, str):
        return str(escape(value if value.isprintable() else printable(value)))
    return f"{round(value, 2):g}"


def drawing(
    width: float, height: float, label: str, *children: str, class_: str = "chart", **more: str | float
) -> Markup:
    """A picture with what it shows as its name for screen readers."""
    return element(
        "svg",
        *children,
        class_=class_,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        **more,
    )


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "", **more: str | float) -> Markup:
    return element("text", content, x=x, y=y, text_anchor=anchor, **({"class_": class_} if class_ else {}), **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, title: str = "") -> Markup:
    inside = [element("title", title)] if title else []
    return element("rect", *inside, x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), class_=class_)


def polyline(points: list[tuple[float, float]], class_: str) -> Markup:
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=class_)


def marker(name: str, x: float, y: float, radius: float, class_: str, title: str = "") -> Markup:
    """One of `looks.CORNERS` about a point."""
    corners, r = CORNERS[name], radius
    if corners:
        path = "M" + "L".join(f"{x + r * across:.2f} {y - r * up:.2f}" for across, up in corners) + "Z"
    else:
        path = f"M{x - r:.2f} {y:.2f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    inside = [element("title", title)] if title else []
    return element("path", *inside, d=path, class_=class_)
