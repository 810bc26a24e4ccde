"""Figures 5 and 6: which layers and components each method moved, as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.errors import unknown
from mmsurgery.figures.heatmap import Heatmap, by_address, draw
from mmsurgery.names import Address

KINDS = {"share": "share of its weights in the top n", "relative": "||after - before|| / ||before||"}
"""What can be shown, and what a cell's colour stands for."""


def draw_deviations(entries: Mapping[str, Mapping[str, Any]], kind: str, path: Path) -> None:
    """One line of heatmaps per method, all on one colour scale, with layers from left to right.

    Args:
        entries: label of the method -> its entry of an experiment's `deviations`.
        kind: `share` of each cell's weights that are among the top n, or `relative` change of each cell.

    Raises:
        UsageError: for another kind or format, or without entries.
        MachineFault: if the file cannot be written.
    """
    if kind not in KINDS:
        raise unknown("kind of deviation", kind, KINDS)
    draw({_titled(label, entry, kind): _heatmaps(entry, kind) for label, entry in entries.items()}, path)


def _titled(label: str, entry: Mapping[str, Any], kind: str) -> str:
    """With the module groups' parts of the top n, or how many of their weights changed."""
    parts = [(group, 100 * values["top"], 100 * values["changed"]) for group, values in entry["groups"].items()]
    if kind == "share":
        return f"{label}: top n {', '.join(f'{top:.0f} % in {group}' for group, top, _ in parts)}"
    return f"{label}: changed {', '.join(f'{changed:.0f} % of {group}' for group, _, changed in parts)}"


def _heatmaps(entry: Mapping[str, Any], kind: str) -> Sequence[Heatmap]:
    cells = {
        Address.parse(f"{layer}.{component}"): math.nan if value is None else value
        for layer, values, sizes in zip(entry["layers"], entry[kind], entry["sizes"], strict=True)
        for component, value, size in zip(entry["components"], values, sizes, strict=True)
        if size
    }
    return by_address(cells, KINDS[kind])
