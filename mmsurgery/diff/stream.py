"""Streaming the differences of two checkpoints: exact top-n counts in memory that does not grow with n.

A difference is ordered by the bit pattern of |after - before| in float32: patterns of non-negative
floats are ordered as their values. The first pass counts patterns by their upper bits, which gives the
bin that the n-th largest falls into, and adds up squares; the second counts that bin's patterns by their
lower bits, cell by cell. The patterns that can be in it are kept where they are few; else the blocks
that hold some are read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles, WeightReader
from mmsurgery.artifacts.mask import Mask, count_ones, pack
from mmsurgery.artifacts.tensors import DTYPES, to_float32
from mmsurgery.errors import UnusableData

BLOCK = 1 << 17
"""Weights read at a time; a multiple of 8."""
LOW_BITS = 13
"""Of a pattern's 31 bits, those told apart in the second pass."""
_BINS = 1 << (31 - LOW_BITS)
_INFINITY = 0x7F800000
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ROW = 2048
"""Weights whose squares are added at a time: few enough for one thread, so the order is that of any number."""
_RAISED_EVERY = 256
"""Blocks after which the lowest bin that still matters is looked up again; and after 1, 2, 4, 8 ..."""

_KEPT = 1 << 20
"""Patterns kept between the passes, at most."""

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
    candidates: dict[str, list[Array]] | None = field(default_factory=dict)
    """Of each parameter the patterns of the n-th largest's bin and above, and some below; None where they were
    too many."""

    def count(self, name: str, patterns: Array) -> None:
        """Count patterns of the lowest bin that matters and above."""
        bins = patterns >> LOW_BITS
        first = int(bins.min())  # so that what is added is as long as the bins of these patterns reach
        counted = np.bincount(bins - np.uint32(first))
        self.histogram[first : first + len(counted)] += counted
        if self.candidates is not None:
            self.candidates.setdefault(name, []).append(patterns)

    def leave_out_below(self, lowest: int) -> None:
        """Forget candidates below a bin, and all of them where too many would be left."""
        if self.candidates is None:
            return
        kept = {name: np.concatenate(arrays) for name, arrays in self.candidates.items()}
        kept = {name: patterns[patterns >= lowest << LOW_BITS] for name, patterns in kept.items()}
        few = sum(patterns.size for patterns in kept.values()) <= _KEPT
        self.candidates = {name: [patterns] for name, patterns in kept.items()} if few else None


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
    with _Reading(before, after, block) as reading:
        for name in before.names:
            offsets[name], maxima, counted, moved, there = offset, [], 0, 0.0, 0.0
            for part in reading.blocks(name):
                maxima.append(part.maximum)
                changed = part.changed()
                counted += (count := int(np.count_nonzero(changed)))
                if mask is not None and count:
                    bits = mask.parameters[name].bits[part.start // 8 : (part.start + changed.size + 7) // 8]
                    found.inside += count_ones(pack(changed) & bits)
                if part.maximum and part.maximum >> LOW_BITS >= lowest:
                    places = np.flatnonzero(part.patterns >= max(1, lowest << LOW_BITS))
                    found.count(name, patterns := part.patterns[places])
                    largest.add(patterns, part.delta, places, offset + part.start)
                moved += part.squares(part.delta) if part.maximum else 0.0
                there += part.squares(part.value)
                blocks += 1
                if blocks % _RAISED_EVERY == 0 or blocks & (blocks - 1) == 0:
                    lowest = threshold_bin(found.histogram, n)
                    found.leave_out_below(lowest)
            found.maxima[name], found.changed[name], found.squares[name] = maxima, counted, (moved, there)
            offset += math.prod(before.shape(name))
            advance(1)
    found.largest = largest.entries(offsets)
    return found


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
    for name, larger, lower in _of_bin(before, after, found, chosen, block, advance):
        cell = cells[name]
        above[cell] = above.get(cell, 0) + larger
        if lower.size:
            low[cell] = low[cell] + lower if cell in low else lower
    wanted = n - int(found.histogram[chosen + 1 :].sum())
    together = sum(low.values(), np.zeros(1 << LOW_BITS, np.int64))
    place = threshold_bin(together, wanted)
    counts = {}
    for cell, larger in above.items():
        inside = low.get(cell, np.zeros(1, np.int64))
        counts[cell] = Counts(larger + int(inside[place + 1 :].sum()), int(inside[place]) if cell in low else 0)
    pattern = np.array([chosen << LOW_BITS | place], np.uint32)
    return float(pattern.view(np.float32)[0]), counts


def _of_bin(
    before: CheckpointFiles,
    after: CheckpointFiles,
    found: Scan,
    chosen: int,
    block: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[str, int, Array]]:
    """Names with how many patterns are above the bin `chosen`, and counts of those in it by their lower bits."""
    if found.candidates is not None:
        for name, arrays in found.candidates.items():
            for patterns in arrays:
                yield name, *_split(patterns, chosen)
        advance(len(before.names))
        return
    with _Reading(before, after, block, found.maxima, chosen) as reading:
        for name in before.names:
            for part in reading.blocks(name):
                yield name, *_split(part.patterns, chosen)
            advance(1)


def _split(patterns: Array, chosen: int) -> tuple[int, Array]:
    larger = int(np.count_nonzero(patterns >= (chosen + 1) << LOW_BITS))
    lower = patterns[patterns >> LOW_BITS == chosen] & ((1 << LOW_BITS) - 1)
    return larger, np.bincount(lower, minlength=1 << LOW_BITS) if lower.size else np.zeros(0, np.int64)


class _Largest:
    """The k largest differences seen; equal ones in the order they were added."""

    def __init__(self, k: int) -> None:
        self.k, self.threshold = k, 0
        self._patterns = np.zeros(0, np.uint32)
        self._deltas = np.zeros(0, np.float32)
        self._places = np.zeros(0, np.int64)

    def add(self, patterns: Array, deltas: Array, places: Array, offset: int) -> None:
        """Take the weights of a block at `places`, of which `patterns` are; `offset` is the place of the block's
        first weight among all, and must increase from call to call."""
        chosen = np.flatnonzero(patterns > self.threshold) if self.k else ()
        if not len(chosen):
            return
        places = places[chosen]
        self._patterns = np.concatenate([self._patterns, patterns[chosen]])
        self._deltas = np.concatenate([self._deltas, deltas[places]])
        self._places = np.concatenate([self._places, places + offset])
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


class _Reading:
    """Blocks of two checkpoints' parameters, in memory that the next block takes again."""

    def __init__(
        self,
        before: CheckpointFiles,
        after: CheckpointFiles,
        block: int,
        maxima: Mapping[str, list[int]] | None = None,
        chosen: int = 0,
    ) -> None:
        """With `maxima`, greatest patterns of the blocks, only blocks that reach the bin `chosen`."""
        self._files, self._block = (before, after), block
        self._maxima, self._chosen = maxima, chosen
        self._rooms = np.empty((2, 8 * block), np.uint8)
        self._delta, self._patterns = np.empty(block, np.float32), np.empty(block, np.uint32)
        self._wide = np.empty(block, np.float64)

    def __enter__(self) -> _Reading:
        with ExitStack() as opened:
            self._readers = [opened.enter_context(closing(WeightReader(files))) for files in self._files]
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def blocks(self, name: str) -> Iterator[_Block]:
        """Blocks of a parameter.

        Raises:
            InputRefused: if a file was cut meanwhile.
            UnusableData: if a weight or a difference is not finite in float32.
        """
        whole = math.prod(self._files[0].shape(name))
        for place, start in enumerate(range(0, whole, self._block)):
            if self._maxima is None or self._maxima[name][place] >> LOW_BITS >= self._chosen:
                yield self._read(name, start, min(self._block, whole - start))

    def _read(self, name: str, start: int, size: int) -> _Block:
        dtypes = self._files[0].dtype(name), self._files[1].dtype(name)
        stored = [
            room[: size * DTYPES[dtype].itemsize].view(DTYPES[dtype])
            for dtype, room in zip(dtypes, self._rooms, strict=True)
        ]
        for reader, room in zip(self._readers, stored, strict=True):
            reader.read(name, start, room)
        with np.errstate(over="ignore", invalid="ignore"):
            values = to_float32(stored[0], dtypes[0]), to_float32(stored[1], dtypes[1])
            delta = np.subtract(values[1], values[0], out=self._delta[:size])
        patterns = np.bitwise_and(delta.view(np.uint32), _MAGNITUDE, out=self._patterns[:size])
        if (maximum := int(patterns.max())) >= _INFINITY:
            raise _not_finite(name, start, self._files, values, patterns)
        return _Block(start, (stored[0], stored[1]), dtypes, values[0], delta, patterns, maximum, self._wide[:size])


@dataclass(frozen=True)
class _Block:
    """Consecutive weights of a parameter in both checkpoints."""

    start: int
    stored: tuple[Array, Array]
    """bfloat16 as bit patterns."""
    dtypes: tuple[str, str]
    value: Array
    """before, float32."""
    delta: Array
    """after - before, float32."""
    patterns: Array
    """Bit patterns of |delta|, uint32."""
    maximum: int
    """The greatest pattern."""
    wide: Array
    """Room for float64 values."""

    def changed(self) -> Array:
        """Whether bits differ; weights stored in different dtypes are compared as float64 values, which
        hold every dtype's exactly."""
        old, new = self.stored
        if self.dtypes[0] == self.dtypes[1]:
            pattern = f"u{old.itemsize}"
            old, new = old.view(pattern), new.view(pattern)
        else:
            old, new = (
                (to_float32(stored, dtype) if dtype == "BF16" else stored).astype(np.float64).view(np.uint64)
                for stored, dtype in zip(self.stored, self.dtypes, strict=True)
            )
        changed: Array = old != new
        return changed

    def squares(self, values: Array) -> float:
        """The sum of the squares, in float64."""
        wide = self.wide
        np.copyto(wide, values)
        rows = wide[: wide.size // _ROW * _ROW].reshape(-1, _ROW)
        rest = wide[rows.size :]
        return float(np.vecdot(rows, rows).sum() + np.vecdot(rest, rest))


def _not_finite(
    name: str, start: int, files: tuple[CheckpointFiles, CheckpointFiles], values: tuple[Array, Array], patterns: Array
) -> UnusableData:
    place = int(np.flatnonzero(patterns >= _INFINITY)[0])
    for each, numbers in zip(files, values, strict=True):
        if not np.isfinite(numbers[place]):
            return UnusableData(
                f"{name} of {each.path} holds {numbers[place]} at flat index {start + place}", "use another checkpoint"
            )
    return UnusableData(
        f"the difference of {name} at flat index {start + place} is too large for float32", "use another checkpoint"
    )
