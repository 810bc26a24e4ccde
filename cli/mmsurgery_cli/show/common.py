"""Pieces that several commands print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mmsurgery.names import GROUPS
from mmsurgery_cli.output import percent, table

if TYPE_CHECKING:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.unlearn.verify import Moved


Lines = Iterator[RenderableType]


def next_command(command: str) -> Text:
    return Text.assemble(("next: ", "dim"), command)


def state(up_to_date: bool) -> Text:
    return Text("up to date" if up_to_date else "made", style="dim" if up_to_date else "green")


def moves(moved: dict[str, Moved]) -> Table:
    """Weights that moved per group; where there was no mask all are inside, and there is no outside."""
    masked = any(counts.outside_total for counts in moved.values())
    rows = table("group", *(("moved inside", "of", "moved outside", "of") if masked else ("moved", "of")), numbers=1)
    for group, counts in sorted(moved.items(), key=lambda pair: GROUPS.index(pair[0])):
        cells = [counts.inside, counts.inside_total, *([counts.outside, counts.outside_total] if masked else [])]
        rows.add_row(group, *(f"{cell:,}" for cell in cells))
    return rows


def densities(mask: Mask) -> Table:
    rows = table("group", "selected", "weights", "share %", numbers=1)
    inside = {mask.addresses[name].group for name in mask.in_modules()}
    for group, (ones, total) in sorted(mask.tally("group").items(), key=lambda pair: GROUPS.index(pair[0])):
        share = percent(ones / total if total else 0.0) if group in inside else "frozen"
        rows.add_row(group, f"{ones:,}", f"{total:,}", share)
    return rows


def fact(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return text[:12] if len(text) == 64 else text  # the head of a digest tells two apart
