"""The palette of all figures as the page's style."""

from __future__ import annotations

from collections.abc import Iterator

from mmsurgery.figures import looks
from mmsurgery.figures.looks import Colour

DARK = round(looks.DARK_UNTIL * (len(looks.HEAT) - 1))
"""Last step of a heatmap whose numbers are white."""


def style_of(look: looks.Look) -> str:
    """Classes of a row's colour and dash."""
    return f"s{look.colour} d{look.dash}"


def style() -> str:
    """Colours as variables, by day and in the dark, and the classes that take them."""
    named = dict(_variables())
    days = "".join(f" --{name}: {colour.light};" for name, colour in named.items())
    nights = "".join(f" --{name}: {colour.dark};" for name, colour in named.items())
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{{nights} }} }}"
    return "\n".join([f":root {{{days} }}", dark, *_rows(), *_outcomes(), *_ends(), heat(), ""])


def _variables() -> Iterator[tuple[str, Colour]]:
    yield "paper", looks.PAPER
    yield "ink", looks.INK
    for place, colour in enumerate(looks.ROWS):
        yield f"s{place}", colour
    for key, outcome in looks.OUTCOMES.items():
        yield key, outcome.fill
        yield f"on-{key}", outcome.on
    for name, end in looks.ENDS.items():
        yield name, end.fill


def _rows() -> Iterator[str]:
    for place in range(len(looks.ROWS)):
        colour = f"var(--s{place})"
        yield f".s{place} {{ stroke: {colour}; }} .s{place}.bar95 {{ stroke: {colour}; }}"
        yield f".dot.s{place}, .end.s{place}, .faint.s{place}, .c-tag.s{place} {{ fill: {colour}; }}"
        yield f".end.s{place}.hollow {{ stroke: {colour}; }}"
    for place, dash in enumerate(looks.DASHES):
        if dash:
            lengths = " ".join(f"{2 * length:g}" for length in dash)
            yield f".d{place}.mean, .d{place}.level {{ stroke-dasharray: {lengths}; }}"


def _outcomes() -> Iterator[str]:
    for key in looks.OUTCOMES:
        yield f".o-{key} {{ fill: var(--{key}); background: var(--{key}); }} svg .on-{key} {{ fill: var(--on-{key}); }}"
        yield f".m-{key}::before {{ background: var(--{key}); }}"


def _ends() -> Iterator[str]:
    for name in looks.ENDS:
        yield f".anchor.{name} {{ fill: var(--{name}); }}"


def heat() -> str:
    """Classes `h0` and on: a heatmap's cell with what is written on it."""
    return "\n".join(
        f".h{step} {{ fill: {colour}; background: {colour}; color: {'#fff' if step <= DARK else '#000'}; }}"
        for step, colour in enumerate(looks.HEAT)
    )
