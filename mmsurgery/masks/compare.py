"""Eq. 7 weight by weight: in float32 where that is certain, in float64 where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsurgery.artifacts.bits import Bools, Bytes
from mmsurgery.artifacts.saliency_map import Array, SaliencyMap
from mmsurgery.masks import ratio as ratio_module
from mmsurgery.masks.ratio import Ratio

_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Between them float32 is as precise as it can be."""


@dataclass(frozen=True)
class _Factors:
    """`S_T >= beta * S_P` multiplied out to `target * sum_T >= kept[0] * sum_1 + kept[1] * sum_2 + ...`."""

    target: np.float32
    kept: tuple[np.float32, ...] | None
    """None where all are 1."""


class Comparison:
    """Where S_T > 0 and S_T >= beta * S_P: to the bit what float64 says, at about half its price.

    Both sides are computed from the float32 sums in float32. Nothing is subtracted and all numbers are positive,
    so each side is off by at most one unit in the last place (ulp) for each rounding: one of each factor, product
    and addition. Where the sides are further apart than `_margin`, which is more than twice that, the order is
    certain; the others, a few in a million, are compared again in float64. As integers the bits of positive floats
    are ordered as the floats, subnormal ones and infinity (overflow of both sides) included, and the difference of
    two is their distance in ulps.
    """

    def __init__(self, ratio: Ratio, beta: float) -> None:
        self._ratio, self._beta = ratio, beta
        self.zero_over_zero = 0
        """Weights with S_T = S_P = 0 among those compared so far."""
        # fresh arrays would cost more than the arithmetic
        self._sides = [np.empty(ratio_module.BLOCK, np.float32) for _ in range(3)]
        self._answers: list[Bools] = [np.empty(ratio_module.BLOCK, np.bool_) for _ in range(3)]

    def write(self, name: str, out: Bytes) -> None:
        """Pack the answers for a parameter with forget gradient into `out`; raises as `Ratio.sums`."""
        maps, place = self._ratio.maps(name), 0
        factors = self._factors(maps)
        with np.errstate(over="ignore", under="ignore"):
            for sums, plain in self._ratio.sums(name):
                chosen = self._quick(sums, maps, factors) if plain and factors else self._exact(sums, maps)
                packed = np.packbits(chosen, bitorder="little")
                out[place : place + packed.size] = packed
                place += packed.size

    def _factors(self, maps: Sequence[SaliencyMap]) -> _Factors | None:
        """None if float32 has not got them to full precision."""
        ratio, pooled = self._ratio, self._ratio.mixture == "pooled"
        first = ratio.units if pooled or not maps[1:] else len(ratio.preserve) * maps[1].units
        target = first / (ratio.forget.units * self._beta)
        kept = [] if pooled else [maps[1].units / each.units for each in maps[1:]]
        if not all(_LEAST <= factor <= _MOST for factor in (target, *kept)):
            return None
        return _Factors(np.float32(target), None if pooled else tuple(map(np.float32, kept)))

    def _quick(self, sums: Sequence[Array], maps: Sequence[SaliencyMap], factors: _Factors) -> Bools:
        target, *kept = sums
        left, sum_, product = (each[: target.size] for each in self._sides)
        sure, perhaps, positive = (each[: target.size] for each in self._answers)
        np.multiply(target, factors.target, out=left)
        right = _added(kept, factors.kept, sum_, product)
        distance = left.view(np.int32)
        np.subtract(distance, right.view(np.int32), out=distance)
        margin = _margin(len(kept))
        np.greater(distance, margin, out=sure)
        np.greater_equal(distance, -margin, out=perhaps)
        if not target.min():
            np.greater(target, 0, out=positive)
            np.logical_and(sure, positive, out=sure)
            np.logical_and(perhaps, positive, out=perhaps)
            self._count_zeros(kept, positive)
        np.not_equal(sure, perhaps, out=perhaps)
        if perhaps.any():
            places = np.flatnonzero(perhaps)
            sure[places] = self._exact([each[places] for each in sums], maps)
        return sure

    def _count_zeros(self, kept: Sequence[Array], positive: Bools) -> None:
        zero = np.logical_not(positive, out=positive)
        for sums in kept:
            zero &= sums == 0
        self.zero_over_zero += int(np.count_nonzero(zero))

    def _exact(self, sums: Sequence[Array], maps: Sequence[SaliencyMap]) -> Bools:
        target, kept = self._ratio.means(sums, maps)
        positive: Bools = target > 0
        if not positive.all():
            self.zero_over_zero += int(np.count_nonzero(kept[~positive] == 0))
        if self._beta != 1:
            np.multiply(kept, self._beta, out=kept)
        enough: Bools = target >= kept
        return np.logical_and(positive, enough, out=enough)


def _margin(kept: int) -> int:
    """Ulps between two sides that are certainly in order: of the left one 2 roundings, of the right one 2 for each
    of its sums and one for each addition; doubled, for below a power of two ulps are half as large; and some more
    for the roundings of float64."""
    return 2 * (2 + 3 * kept) + 4


def _added(sums: Sequence[Array], factors: Sequence[Any] | None, out: Array, product: Array) -> Array:
    """The sum of `factors * sums`, in `out` if it has to be computed."""
    if factors is None and len(sums) == 1:
        return sums[0]
    if factors is None and sums:
        np.add(sums[0], sums[1], out=out)
        for each in sums[2:]:
            np.add(out, each, out=out)
        return out
    out.fill(0)
    for each, factor in zip(sums, factors or (), strict=True):
        np.add(out, np.multiply(each, factor, out=product), out=out)
    return out
