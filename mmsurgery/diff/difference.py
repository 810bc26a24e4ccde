"""Top-n deviated parameters of two checkpoints, counted over layers and components."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.diff import stream
from mmsurgery.errors import Mismatch, UsageError
from mmsurgery.names import COMPONENTS, GROUPS, Address
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.figures.heatmap import Heatmap

TOP = 1000
LISTED = 1000


@dataclass(frozen=True)
class Difference:
    """Where two checkpoints of the same names and shapes differ most."""

    n: int
    """How many of the largest |after - before| are counted in the heatmap."""
    threshold: float
    """The n-th largest |after - before| in float32; 0 where fewer than n weights differ, and then these
    alone are counted."""
    changed: int
    """Weights whose stored bits differ (0.0 and -0.0 do)."""
    inside: int | None
    """Of these, weights that the mask selects; None without a mask."""
    outside: int | None
    changed_by_group: Mapping[str, int]
    """The changed weights of each module group, in the order of `names.GROUPS`."""
    layers: tuple[str, ...]
    """Rows: per group its layers (`lm.0`, ...), then the group's name for parameters without a layer."""
    components: tuple[str, ...]
    """Columns, in the order of `names.COMPONENTS`."""
    heatmap: tuple[tuple[float, ...], ...]
    """Counts `[layers, components]`. Weights equal to the threshold, if not all fit into n, count in the
    same share in every cell, so a count need not be whole."""
    sizes: tuple[tuple[int, ...], ...]
    """Weights of each cell `[layers, components]`; 0 where there is no such cell."""
    relative: tuple[tuple[float | None, ...], ...]
    """||after - before|| / ||before|| of each cell `[layers, components]`, L2 norms over its weights in float64;
    None where there is no such cell, or all its weights are 0 before."""
    top: tuple[stream.Entry, ...]
    """The largest differences, at most n: by |delta| descending, then name, then flat index."""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON, in their order."""
        return {
            "n": self.n,
            "threshold": self.threshold,
            "changed": self.changed,
            "inside": self.inside,
            "outside": self.outside,
            "changed_by_group": dict(self.changed_by_group),
            "layers": list(self.layers),
            "components": list(self.components),
            "heatmap": [list(row) for row in self.heatmap],
            "sizes": [list(row) for row in self.sizes],
            "relative": [list(row) for row in self.relative],
            "top": [dataclasses.asdict(entry) for entry in self.top],
        }


def compare(
    before: CheckpointFiles,
    after: CheckpointFiles,
    addresses: Mapping[str, Address],
    *,
    top: int = TOP,
    listed: int = LISTED,
    mask: Mask | None = None,
    block: int = stream.BLOCK,
    progress: Progress = SILENT,
) -> Difference:
    """Compare two checkpoints, streaming from their files: memory depends on neither their size nor `top`.

    Args:
        addresses: of every parameter.
        top: n, at least 1.
        listed: how many entries to list at most.
        mask: to tell changes inside from changes outside.
        block: weights read at a time, a multiple of 8; the result does not depend on it, but for the round-off of
            `relative`.

    Raises:
        UsageError: if `top` or `listed` makes no sense.
        Mismatch: naming up to three parameters, if names or shapes differ.
        UnusableData: naming the tensor, if a weight or a difference is not finite in float32.
    """
    if top < 1 or listed < 0:
        raise UsageError(f"top {top} and list {listed} make no sense", "pass --top 1000 --list 1000")
    _check_same_model(before, after, mask)
    weights = sum(math.prod(before.shape(name)) for name in before.names)
    wanted = min(top, weights + 1)  # any larger n finds the same
    cells = {name: (address.layer_key, address.component) for name, address in addresses.items()}
    with progress.stage("comparing weights", 2 * len(before.names)) as advance:
        found = stream.scan(
            before, after, n=wanted, listed=min(listed, wanted), mask=mask, block=block, advance=advance
        )
        threshold, counts = stream.count(before, after, cells, found, n=wanted, block=block, advance=advance)
    layers, components = _axes(addresses)
    values, sizes = _shared_out(counts, wanted if threshold else 0), _sizes(before, cells)
    relative, changed = _relative(found, cells), sum(found.changed.values())
    return Difference(
        n=top,
        threshold=threshold,
        changed=changed,
        inside=None if mask is None else found.inside,
        outside=None if mask is None else changed - found.inside,
        changed_by_group=_by_group(found.changed, addresses),
        layers=layers,
        components=components,
        heatmap=tuple(tuple(values.get((row, column), 0) for column in components) for row in layers),
        sizes=tuple(tuple(sizes.get((row, column), 0) for column in components) for row in layers),
        relative=tuple(tuple(relative.get((row, column)) for column in components) for row in layers),
        top=tuple(found.largest),
    )


def heatmaps(record: Mapping[str, Any]) -> list[Heatmap]:
    """One heatmap per module group: the share of each cell's weights that are among the top n; the title
    gives the group's share of the n.

    Args:
        record: a diff record or the JSON of a `Difference`.
    """
    shares = {
        Address.parse(f"{row}.{component}"): value / size
        for row, values, sizes in zip(record["layers"], record["heatmap"], record["sizes"], strict=True)
        for component, value, size in zip(record["components"], values, sizes, strict=True)
        if size
    }
    counts = group_counts(record)
    total = sum(counts.values()) or 1
    unit = f"share in the top {min(record['n'], record['changed']):,}"
    return [
        dataclasses.replace(each, title=f"{each.title} {counts[each.title] / total:.0%}")
        for each in _by_address(shares, unit)
    ]


def relative_heatmaps(record: Mapping[str, Any]) -> list[Heatmap]:
    """One heatmap per module group: the relative change of each cell, see `Difference.relative`.

    Args:
        record: as for `heatmaps`.
    """
    cells = {
        Address.parse(f"{row}.{component}"): math.nan if value is None else value
        for row, values, sizes in zip(record["layers"], record["relative"], record["sizes"], strict=True)
        for component, value, size in zip(record["components"], values, sizes, strict=True)
        if size
    }
    return _by_address(cells, "||after - before|| / ||before||")


def _by_address(cells: Mapping[Address, float], unit: str) -> list[Heatmap]:
    from mmsurgery.figures.heatmap import by_address

    return by_address(cells, unit)


def group_counts(record: Mapping[str, Any]) -> dict[str, float]:
    """How many of the top n are in each module group, in the order of `names.GROUPS`."""
    counts: dict[str, float] = {}
    for row, values in zip(record["layers"], record["heatmap"], strict=True):
        group = row.partition(".")[0]
        counts[group] = counts.get(group, 0) + sum(values)
    return counts


def _check_same_model(before: CheckpointFiles, after: CheckpointFiles, mask: Mask | None) -> None:
    mine = {name: before.shape(name) for name in before.names}
    others: list[tuple[str, dict[str, tuple[int, ...]]]] = [
        (str(after.path), {name: after.shape(name) for name in after.names})
    ]
    if mask is not None:
        others.append(("the mask", {name: parameter.shape for name, parameter in mask.parameters.items()}))
    for what, theirs in others:
        differing = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        if differing:
            shown = "; ".join(f"{name}: {_shape(mine, name)} and {_shape(theirs, name)}" for name in differing[:3])
            raise Mismatch(
                f"{before.path} and {what} do not have the same {len(differing)} parameters: {shown}",
                "compare models of one architecture",
            )


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "none"


def _axes(addresses: Mapping[str, Address]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rows = {(GROUPS.index(a.group), a.layer is None, a.layer or 0, a.layer_key) for a in addresses.values()}
    found = {address.component for address in addresses.values()}
    return tuple(row[-1] for row in sorted(rows)), tuple(each for each in COMPONENTS if each in found)


def _sizes(files: CheckpointFiles, cells: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], int]:
    sizes: dict[tuple[str, str], int] = {}
    for name in files.names:
        sizes[cells[name]] = sizes.get(cells[name], 0) + int(np.prod(files.shape(name), dtype=np.int64))
    return sizes


def _relative(found: stream.Scan, cells: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], float]:
    """The relative change of the cells that were not all 0 before; parameters are added up in their order."""
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    for name, (moved, there) in found.squares.items():
        before = sums.get(cells[name], (0.0, 0.0))
        sums[cells[name]] = before[0] + moved, before[1] + there
    return {cell: math.sqrt(moved / there) for cell, (moved, there) in sums.items() if there}


def _by_group(changed: Mapping[str, int], addresses: Mapping[str, Address]) -> dict[str, int]:
    present = {address.group for address in addresses.values()}
    counts = {group: 0 for group in GROUPS if group in present}
    for name, count in changed.items():
        counts[addresses[name].group] += count
    return counts


def _shared_out(counts: Mapping[tuple[str, str], stream.Counts], n: int) -> dict[tuple[str, str], float]:
    """Counts of the n largest by cell; those equal to the threshold in proportion. With n = 0 (fewer
    weights differ than were asked for) those above it alone."""
    ties = sum(each.at for each in counts.values())
    wanted = n - sum(each.above for each in counts.values()) if n else 0
    return {cell: _plus_share(each.above, wanted * each.at, ties) for cell, each in counts.items()}


def _plus_share(above: int, part: int, ties: int) -> float:
    whole, rest = divmod(part, ties) if ties else (0, 0)
    return above + whole + rest / ties if rest else above + whole
