"""Figures 5 and 6: where the weights lie that each method moved furthest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.errors import InputRefused
from mmsurgery.figures.heatmap import Heatmap, by_address
from mmsurgery.names import GROUPS, Address
from mmsurgery.report import numbers
from mmsurgery.report.fields import Fields
from mmsurgery.report.heat import Colours, heatmaps, relative_said, share_said
from mmsurgery.report.results import Results


@dataclass(frozen=True)
class Deviation:
    """What one row changed."""

    label: str
    n: str
    changed: str
    """Share of all weights whose bits changed."""
    models: int
    groups: Mapping[str, tuple[str, str]]
    """Module group -> its part of the top n, share of its weights that changed."""
    share: Sequence[Markup]
    relative: Sequence[Markup]


@dataclass(frozen=True)
class Deviations:
    """A panel's rows, all on one colour scale per measure."""

    groups: Sequence[str]
    rows: Sequence[Deviation]
    share_scale: Markup
    relative_scale: Markup


def deviations(results: Results, panel: str) -> Deviations | None:
    """The heatmaps of a panel; None where the experiment has none of it.

    Raises:
        InputRefused: if a heatmap does not fit its layers and components.
    """
    if not results.found.has("deviations") or not results.found.get("deviations").has(panel):
        return None
    found = results.found.get("deviations").get(panel).items()
    ordered = {key: found[key] for key in results.rows if key in found}
    if len(ordered) != len(found):
        raise InputRefused(f"{results.found.where}: deviations of a row that is not there", "make it again")
    sizes = {key: _sizes(row) for key, row in ordered.items()}
    shares = {key: _maps(row, sizes[key], "share") for key, row in ordered.items()}
    relatives = {key: _maps(row, sizes[key], "relative") for key, row in ordered.items()}
    by_share = Colours([each for maps in shares.values() for each in maps])
    by_length = Colours([each for maps in relatives.values() for each in maps])
    rows = []
    for key, row in ordered.items():
        titled = [dataclasses.replace(each, title=_titled(each.title, row)) for each in shares[key]]
        groups = {
            group: tuple(numbers.percent(its.get(what).share()) for what in ("top", "changed"))
            for group, its in row.get("groups").items().items()
        }
        rows.append(
            Deviation(
                label=results.labels[key],
                n=numbers.count(row.get("n").whole()),
                changed=numbers.percent(row.get("changed").share()),
                models=row.get("models").whole(),
                groups={group: (pair[0], pair[1]) for group, pair in groups.items()},
                share=heatmaps(titled, sizes[key], share_said, by_share, across=True),
                relative=heatmaps(relatives[key], sizes[key], relative_said, by_length, across=True),
            )
        )
    present = [group for group in GROUPS if any(group in row.groups for row in rows)]
    return Deviations(present, rows, by_share.legend, by_length.legend)


def _titled(group: str, row: Fields) -> str:
    groups = row.get("groups")
    return f"{group} {100 * groups.get(group).get('top').share():.0f} %" if groups.has(group) else group


def _sizes(row: Fields) -> dict[Address, int]:
    """Weights of each cell that has some."""
    found = {}
    for address, cell in _cells(row, "sizes"):
        if cell.whole():
            found[address] = cell.whole()
    return found


def _maps(row: Fields, sizes: Mapping[Address, int], what: str) -> list[Heatmap]:
    cells = {}
    for address, cell in _cells(row, what):
        if address not in sizes:
            continue
        if what == "share":
            cells[address] = cell.share()
        else:
            cells[address] = math.nan if cell.value is None else cell.number()
            if cells[address] < 0:
                raise InputRefused(f"{cell.where} is negative", "make it again")
    unit = "share in the top n" if what == "share" else "length of the change by length before"
    return by_address(cells, unit, log=what == "relative")


def _cells(row: Fields, what: str) -> list[tuple[Address, Fields]]:
    layers, components = row.get("layers").texts(), row.get("components").texts()
    rows = [cells.entries() for cells in row.get(what).entries()]
    if len(rows) != len(layers) or any(len(cells) != len(components) for cells in rows):
        raise InputRefused(f"{row.where}: {what} does not fit its layers and components", "make it again")
    try:
        places = [[Address.parse(f"{layer}.{component}") for component in components] for layer in layers]
    except InputRefused as error:
        raise InputRefused(f"{row.where}: {error.what}", "make it again") from error
    return [pair for at, cells in zip(places, rows, strict=True) for pair in zip(at, cells, strict=True)]
