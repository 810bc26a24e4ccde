"""Figures 5 and 6: which layers and components each method moved, as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.errors import printable, unknown
from mmsurgery.figures.heatmap import Heatmap, by_address, draw
from mmsurgery.names import GROUPS, Address

KINDS = {"share": "share of its weights in the top n", "relative": "||after - before|| / ||before||"}
"""What can be shown, and what a cell's colour stands for."""
_TITLES = {
    "share": "Where the n weights lie that moved furthest",
    "relative": "How far weights moved, against their length before",
}


def draw_deviations(entries: Mapping[str, Mapping[str, Any]], kind: str, path: Path, title: str = "") -> None:
    """One line of heatmaps per method, all on one colour scale, with layers from left to right; that of relative
    changes is logarithmic.

    Args:
        entries: label of the method -> its entry of an experiment's `deviations`.
        kind: `share` of each cell's weights that are among the top n, or `relative` change of each cell.
        title: what it is a picture of, before what the colours say.

    Raises:
        UsageError: for another kind or format, or without entries.
        MachineFault: if the file cannot be written.
    """
    if kind not in KINDS:
        raise unknown("kind of deviation", kind, KINDS)
    lines = {_titled(label, entry, kind): _heatmaps(entry, kind) for label, entry in entries.items()}
    draw(lines, path, title=". ".join(filter(None, (printable(title), _TITLES[kind]))))


def _titled(label: str, entry: Mapping[str, Any], kind: str) -> str:
    """With the module groups' parts of the top n, or how many of their weights changed."""
    what, of = ("top", "of the n") if kind == "share" else ("changed", "of the weights changed")
    ordered = [(group, entry["groups"][group]) for group in GROUPS if group in entry["groups"]]
    parts = [f"{100 * values[what]:.0f} %{{}} in {group}" for group, values in ordered]
    said = [part.format("" if place else f" {of}") for place, part in enumerate(parts)]
    return f"{label}: {', '.join(said)}"


def _heatmaps(entry: Mapping[str, Any], kind: str) -> Sequence[Heatmap]:
    cells = {
        Address.parse(f"{layer}.{component}"): math.nan if value is None else value
        for layer, values, sizes in zip(entry["layers"], entry[kind], entry["sizes"], strict=True)
        for component, value, size in zip(entry["components"], values, sizes, strict=True)
        if size
    }
    return by_address(cells, KINDS[kind], log=kind == "relative")
