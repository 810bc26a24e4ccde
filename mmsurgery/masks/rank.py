"""The weights with the largest S_T / S_P, exactly: found in float32, decided in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mmsurgery.artifacts.bits import Bytes
from mmsurgery.artifacts.saliency_map import Array, SaliencyMap
from mmsurgery.masks import top
from mmsurgery.masks.compare import Factors, Sides, count_zeros, margin
from mmsurgery.masks.ratio import Ratio

Ranks = np.ndarray[Any, np.dtype[np.int32]]

_DROPPED = 16
"""Bits of a float32 that a bin of the histogram does not tell apart."""
_BINS = 1 << 31 - _DROPPED
HELD = 1 << 20
"""As many keys are held in memory; where more ranks are too close, they are streamed again and again."""
_NORMAL, _INFINITY = 1 << 23, 0xFF << 23
"""Bits of the least normal float32 and of infinity."""


@dataclass(frozen=True)
class Cut:
    """Weights ranked above `high` are taken, those below `low` are not; between, those with keys above `key` are,
    and the first `ties` with `key`."""

    low: int
    high: int
    key: int
    ties: int


class Ranking:
    """Ranks S_T / S_P by the bits of its float32, a few ulps off, and by its `Ratio.keys` where ranks are too close.

    The wanted number of weights is reached in one bin of a histogram of ranks; only ranks in this bin, or as near
    to it as roundings reach, have to be told apart by their keys.
    """

    def __init__(self, ratio: Ratio) -> None:
        self._ratio, self._sides = ratio, Sides(ratio, 1.0)
        self._near = 2 * margin(len(ratio.preserve))
        self.zero_over_zero = 0
        """Weights with S_T = S_P = 0 among those written so far."""

    def cut(self, names: Sequence[str], wanted: int) -> Cut:
        """Where to cut so that of these parameters with forget gradient `wanted` weights are taken, or all with
        S_T > 0 where these are fewer. Raises as `Ratio.sums`."""
        histogram = np.zeros(_BINS, np.int64)
        for name in names:
            for ranks, _ in self._ranked(name):
                histogram += np.bincount(ranks >> _DROPPED, minlength=_BINS)
        at_least = np.cumsum(histogram[::-1])[::-1]
        if at_least[0] < wanted:
            return Cut(0, _INFINITY, 0, 0)
        place = int(np.flatnonzero(at_least >= wanted)[-1])
        low, high = (place << _DROPPED) - self._near, (place + 1 << _DROPPED) + self._near
        hold = histogram[max(place - 1, 0) : place + 2].sum() <= HELD
        above, held = 0, []
        for name in names:
            for ranks, keys in self._ranked(name):
                above += int(np.count_nonzero(ranks > high))
                if hold:
                    found = keys(_within(ranks, low, high))
                    held.append(found[found > 0])

        def streamed() -> Iterator[top.Keys]:
            for name in names:
                for ranks, keys in self._ranked(name):
                    yield keys(_within(ranks, low, high))

        together = [np.concatenate(held)] if hold else []
        return Cut(low, high, *top.threshold((lambda: together) if hold else streamed, wanted - above))

    def write(self, name: str, cut: Cut, out: Bytes) -> Cut:
        """Pack what is taken of a parameter into `out`; returns the cut with the ties that are left."""
        place, ties = 0, cut.ties
        for ranks, keys in self._ranked(name, count=True):
            chosen = ranks > cut.high
            places = _within(ranks, cut.low, cut.high)
            if places.size:
                found = keys(places)
                taken = found > cut.key
                equal = np.flatnonzero(found == cut.key)[:ties]
                taken[equal] = True
                ties -= equal.size
                chosen[places] = taken
            packed = np.packbits(chosen, bitorder="little")
            out[place : place + packed.size] = packed
            place += packed.size
        return Cut(cut.low, cut.high, cut.key, ties)

    def _ranked(self, name: str, *, count: bool = False) -> Iterator[tuple[Ranks, Callable[[Any], top.Keys]]]:
        """By blocks: ranks (0 where S_T = 0), and the keys at some places of the block; valid until the next are
        asked for.

        Args:
            count: whether `zero_over_zero` grows.
        """
        ratio = self._ratio
        maps = ratio.maps(name)
        factors = self._sides.factors(maps) if ratio.mixture == "pooled" else None
        for sums, plain in ratio.sums(name):
            ranks = self._quick(sums, factors) if plain and factors else None
            if ranks is None:
                yield self._exact(sums, maps, count)
                continue
            if count and not sums[0].min():
                self.zero_over_zero += count_zeros(sums)
            yield ranks, partial(_keys_at, ratio, sums, maps)

    def _quick(self, sums: Sequence[Array], factors: Factors) -> Ranks | None:
        """None where float32 is not precise enough: numbers too small or too large for all of its digits."""
        target = sums[0]
        with np.errstate(all="ignore"):
            left, right = self._sides(sums, factors)
            if (left.view(np.uint32) - np.uint32(1)).min() < _NORMAL - 1:  # 0 becomes the largest number
                return None
            if max(left.view(np.uint32).max(), right.view(np.uint32).max()) >= _INFINITY:
                return None
            zeros = None if target.min() else target == 0
            known = 0 if zeros is None else np.count_nonzero(zeros)
            if np.count_nonzero(left) + known != target.size:  # a product became 0
                return None
            ranks: Ranks = np.divide(left, right, out=left).view(np.int32)
            if zeros is not None:
                np.copyto(ranks, 0, where=zeros)
        return ranks

    def _exact(
        self, sums: Sequence[Array], maps: Sequence[SaliencyMap], count: bool
    ) -> tuple[Ranks, Callable[[Any], top.Keys]]:
        target, kept = self._ratio.means(sums, maps)
        with np.errstate(all="ignore"):
            ratio = target / kept
            ranks = ratio.astype(np.float32).view(np.int32)
        np.copyto(ranks, 0, where=target == 0)
        if count:
            self.zero_over_zero += int(np.count_nonzero(np.isnan(ratio)))
        keys = np.where(target > 0, top.order(ratio), np.uint64(0))
        return ranks, keys.__getitem__


def _within(ranks: Ranks, low: int, high: int) -> Any:
    """Places of the ranks from `low` to `high`."""
    return np.flatnonzero((ranks >= low) & (ranks <= high))


def _keys_at(ratio: Ratio, sums: Sequence[Array], maps: Sequence[SaliencyMap], places: Any) -> top.Keys:
    return ratio.keys([each[places] for each in sums], maps)
