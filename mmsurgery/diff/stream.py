"""Streaming the differences of two checkpoints: exact top-n counts in memory that does not grow with n.

A difference is ordered by the bit pattern of |after - before| in float32: patterns of non-negative
floats are ordered as their values. The first pass counts patterns by their upper bits, which gives the
bin that the n-th largest falls into, and adds up squares; the second counts that bin's patterns by their
lower bits, cell by cell. Blocks that cannot hold a difference of that size are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, count_ones, pack
from mmsurgery.artifacts.tensors import to_float32
from mmsurgery.errors import UnusableData

BLOCK = 1 << 17
"""Weights read at a time; a multiple of 8."""
LOW_BITS = 13
"""Of a pattern's 31 bits, those told apart in the second pass."""
_BINS = 1 << (31 - LOW_BITS)
_INFINITY = 0x7F800000
_ROW = 2048
"""Weights whose squares are added at a time: few enough for one thread, so the order is that of any number."""
_RAISED_EVERY = 64
"""Blocks after which the lowest bin that still matters is looked up again; and after 1, 2, 4, 8 ..."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One deviated weight."""

    name: str
    index: int
    """Flat, in C order."""
    delta: float
    """after - before, a float32 value."""


@dataclass
class Scan:
    """What the first pass finds."""

    changed: dict[str, int] = field(default_factory=dict)
    """Weights of each parameter whose bits differ."""
    inside: int = 0
    """Of these, weights that the mask selects."""
    squares: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each parameter, the sums of (after - before)^2 and of before^2: float64 sums of float32 values."""
    histogram: Array = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    """Patterns by upper bits; complete from the bin of the n-th largest on, below it some are left out."""
    largest: list[Entry] = field(default_factory=list)
    maxima: dict[str, list[int]] = field(default_factory=dict)
    """Greatest pattern of each block of each parameter."""


@dataclass(frozen=True)
class Counts:
    """Weights of one heatmap cell whose |difference| is above and at the threshold."""

    above: int
    at: int


def scan(
    before: CheckpointFiles,
    after: CheckpointFiles,
    *,
    n: int,
    listed: int,
    mask: Mask | None,
    block: int = BLOCK,
    advance: Callable[[int], None] = lambda amount: None,
) -> Scan:
    """The first pass over two checkpoints of the same names and shapes.

    Args:
        listed: how many of the largest differences to keep, by |delta|, then name, then index.
        block: weights read at a time, a multiple of 8; the result does not depend on it.

    Raises:
        UnusableData: naming the tensor, if a weight or a difference is not finite in float32.
    """
    found, largest, lowest, blocks, offset = Scan(), _Largest(listed), 0, 0, 0
    offsets = {}
    for name in before.names:
        offsets[name], maxima, counted, moved, there = offset, [], 0, 0.0, 0.0
        for part in _blocks(before, after, name, block):
            maxima.append(int(part.patterns.max()))
            changed = part.changed()
            counted += (count := int(np.count_nonzero(changed)))
            if mask is not None and count:
                bits = mask.parameters[name].bits[part.start // 8 : (part.start + changed.size + 7) // 8]
                found.inside += count_ones(pack(changed) & bits)
            if maxima[-1] >> LOW_BITS >= lowest:
                bins = _large(part.patterns, lowest) >> LOW_BITS
                first = int(bins.min())  # so that what is added is as long as the bins of this block reach
                found.histogram[first : (maxima[-1] >> LOW_BITS) + 1] += np.bincount(bins - np.uint32(first))
            largest.add(part.patterns, part.delta, offset + part.start)
            moved += _squares(part.delta) if maxima[-1] else 0.0
            there += _squares(part.value)
            blocks += 1
            if blocks % _RAISED_EVERY == 0 or blocks & (blocks - 1) == 0:
                lowest = threshold_bin(found.histogram, n)
        found.maxima[name], found.changed[name], found.squares[name] = maxima, counted, (moved, there)
        offset += int(np.prod(before.shape(name), dtype=np.int64))
        advance(1)
    found.largest = largest.entries(offsets)
    return found


def _squares(values: Array) -> float:
    """The sum of the squares, in float64."""
    wide = values.astype(np.float64)
    rows = wide[: wide.size // _ROW * _ROW].reshape(-1, _ROW)
    rest = wide[rows.size :]
    return float(np.vecdot(rows, rows).sum() + np.vecdot(rest, rest))


def _large(patterns: Array, lowest: int) -> Array:
    """`patterns` of the bin `lowest` and above; all where leaving out few would cost more than counting them."""
    kept = patterns >= lowest << LOW_BITS
    return patterns[kept] if 8 * int(np.count_nonzero(kept)) < patterns.size else patterns


def threshold_bin(histogram: Array, n: int) -> int:
    """The bin that the n-th largest pattern is in; 0 where there are fewer."""
    from_above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_above, n))
    return max(0, len(histogram) - 1 - place)


def count(
    before: CheckpointFiles,
    after: CheckpointFiles,
    cells: Mapping[str, Any],
    found: Scan,
    *,
    n: int,
    block: int = BLOCK,
    advance: Callable[[int], None] = lambda amount: None,
) -> tuple[float, dict[Any, Counts]]:
    """The second pass: the threshold and the counts of every cell.

    Args:
        cells: name -> key of its heatmap cell.
        block: as for `scan`.

    Returns:
        the n-th largest |difference| (0.0 where fewer than n weights differ), and counts by cell; cells
        without any are left out.
    """
    chosen = threshold_bin(found.histogram, n)
    above: dict[Any, int] = {}
    low: dict[Any, Array] = {}
    for name in before.names:
        cell, maxima = cells[name], found.maxima[name]
        kept = {place * block for place, greatest in enumerate(maxima) if greatest >> LOW_BITS >= chosen}
        for part in _blocks(before, after, name, block, kept):
            larger = int(np.count_nonzero(part.patterns >= (chosen + 1) << LOW_BITS))
            above[cell] = above.get(cell, 0) + larger
            lower = part.patterns[part.patterns >> LOW_BITS == chosen] & ((1 << LOW_BITS) - 1)
            if lower.size:
                counted = np.bincount(lower, minlength=1 << LOW_BITS)
                low[cell] = low[cell] + counted if cell in low else counted
        advance(1)
    wanted = n - int(found.histogram[chosen + 1 :].sum())
    together = sum(low.values(), np.zeros(1 << LOW_BITS, np.int64))
    place = threshold_bin(together, wanted)
    counts = {}
    for cell, larger in above.items():
        inside = low.get(cell, np.zeros(1, np.int64))
        counts[cell] = Counts(larger + int(inside[place + 1 :].sum()), int(inside[place]) if cell in low else 0)
    pattern = np.array([chosen << LOW_BITS | place], np.uint32)
    return float(pattern.view(np.float32)[0]), counts


class _Largest:
    """The k largest differences seen; equal ones in the order they were added."""

    def __init__(self, k: int) -> None:
        self.k, self.threshold = k, 0
        self._patterns = np.zeros(0, np.uint32)
        self._deltas = np.zeros(0, np.float32)
        self._places = np.zeros(0, np.int64)

    def add(self, patterns: Array, deltas: Array, offset: int) -> None:
        """Take a block whose first weight has the place `offset`; places must increase from call to call."""
        chosen = np.flatnonzero(patterns > self.threshold) if self.k else ()
        if not len(chosen):
            return
        self._patterns = np.concatenate([self._patterns, patterns[chosen]])
        self._deltas = np.concatenate([self._deltas, deltas[chosen]])
        self._places = np.concatenate([self._places, offset + np.asarray(chosen, np.int64)])
        if len(self._patterns) > 2 * self.k:
            self._prune()

    def _prune(self) -> None:
        if len(self._patterns) <= self.k:
            return
        kth = np.partition(self._patterns, len(self._patterns) - self.k)[len(self._patterns) - self.k]
        keep = self._patterns > kth
        # of those equal to the k-th the first ones stay, so later equal ones need not be looked at
        keep[np.flatnonzero(self._patterns == kth)[: self.k - int(keep.sum())]] = True
        self._patterns, self._deltas, self._places = self._patterns[keep], self._deltas[keep], self._places[keep]
        self.threshold = int(kth)

    def entries(self, offsets: Mapping[str, int]) -> list[Entry]:
        """Largest first; `offsets` are the places of the parameters' first weights, in order."""
        self._prune()
        order = np.argsort(~self._patterns, kind="stable")  # places are in order
        names, starts, places = list(offsets), np.array([*offsets.values()], np.int64), self._places[order]
        owners = np.searchsorted(starts, places, side="right") - 1
        rows = zip(owners.tolist(), (places - starts[owners]).tolist(), self._deltas[order].tolist(), strict=True)
        return [Entry(names[owner], index, delta) for owner, index, delta in rows]


@dataclass(frozen=True)
class _Block:
    """Consecutive weights of a parameter in both checkpoints."""

    start: int
    old: Array
    new: Array
    """As stored, bfloat16 as bit patterns."""
    dtypes: tuple[str, str]
    value: Array
    """before, float32."""
    delta: Array
    """after - before, float32."""
    patterns: Array
    """Bit patterns of |delta|, uint32."""

    def changed(self) -> Array:
        """Whether bits differ; weights stored in different dtypes are compared as float64 values, which
        hold every dtype's exactly."""
        if self.dtypes[0] == self.dtypes[1]:
            pattern = f"u{self.old.itemsize}"
            old, new = self.old.view(pattern), self.new.view(pattern)
        else:
            old, new = (
                (to_float32(stored, dtype) if dtype == "BF16" else stored).astype(np.float64).view(np.uint64)
                for stored, dtype in zip((self.old, self.new), self.dtypes, strict=True)
            )
        changed: Array = old != new
        return changed


def _blocks(
    before: CheckpointFiles, after: CheckpointFiles, name: str, block: int, kept: set[int] | None = None
) -> Iterator[_Block]:
    """A parameter block by block, or the blocks that start at `kept`."""
    flat = [np.asarray(files.array(name)).reshape(-1) for files in (before, after)]  # slices of a map cost more
    dtypes = before.dtype(name), after.dtype(name)
    for start in range(0, flat[0].size, block):
        if kept is not None and start not in kept:
            continue
        old, new = (array[start : start + block] for array in flat)
        with np.errstate(over="ignore", invalid="ignore"):
            values = to_float32(old, dtypes[0]), to_float32(new, dtypes[1])
            delta = values[1] - values[0]
        patterns = delta.view(np.uint32) & np.uint32(0x7FFFFFFF)
        if patterns.max() >= _INFINITY:
            raise _not_finite(name, start, (before, after), values, patterns)
        yield _Block(start, old, new, dtypes, values[0], delta, patterns)


def _not_finite(
    name: str, start: int, files: tuple[CheckpointFiles, CheckpointFiles], values: tuple[Array, Array], patterns: Array
) -> UnusableData:
    place = int(np.flatnonzero(patterns >= _INFINITY)[0])
    for each, numbers in zip(files, values, strict=True):
        if not np.isfinite(numbers[place]):
            return UnusableData(
                f"{name} of {each.path} holds {numbers[place]} at flat index {start + place}", "use another checkpoint"
            )
    return UnusableData(f"the difference of {name} at flat index {start + place} is too large for float32")
