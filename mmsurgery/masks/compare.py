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
class Factors:
    """`S_T >= beta * S_P` multiplied out to `target * sum_T >= kept[0] * sum_1 + kept[1] * sum_2 + ...`."""

    target: np.float32
    kept: tuple[np.float32, ...] | None
    """None where all are 1."""


class Sides:
    """Both sides of `S_T >= beta * S_P`, multiplied out, in float32.

    Nothing is subtracted and all numbers are positive, so a side is off by at most one unit in the last place (ulp)
    for each rounding: one of each factor, product and addition. As integers the bits of positive floats are ordered
    as the floats, subnormal ones and infinity included, and the difference of two is their distance in ulps.
    """

    def __init__(self, ratio: Ratio, beta: float) -> None:
        self._ratio, self._beta = ratio, beta
        # fresh arrays would cost more than the arithmetic
        self._buffers = [np.empty(ratio_module.BLOCK, np.float32) for _ in range(3)]

    def factors(self, maps: Sequence[SaliencyMap]) -> Factors | None:
        """Of what `maps` store; None if float32 has not got them to full precision."""
        ratio, pooled = self._ratio, self._ratio.mixture == "pooled"
        first = ratio.units if pooled or not maps[1:] else len(ratio.preserve) * maps[1].units
        target = first / (ratio.forget.units * self._beta)
        kept = [] if pooled else [maps[1].units / each.units for each in maps[1:]]
        if not all(_LEAST <= factor <= _MOST for factor in (target, *kept)):
            return None
        return Factors(np.float32(target), None if pooled else tuple(map(np.float32, kept)))

    def __call__(self, sums: Sequence[Array], factors: Factors) -> tuple[Array, Array]:
        """Left and right side of some weights; the left one may be written to. Valid until the next call."""
        left, right, product = (each[: sums[0].size] for each in self._buffers)
        np.multiply(sums[0], factors.target, out=left)
        return left, _added(sums[1:], factors.kept, right, product)


class Comparison:
    """Where S_T > 0 and S_T >= beta * S_P: to the bit what float64 says, at about half its price.

    Where the `Sides` are further apart than `margin`, their order is certain; the others, a few in a million, are
    compared again in float64.
    """

    def __init__(self, ratio: Ratio, beta: float) -> None:
        self._ratio, self._beta, self._sides = ratio, beta, Sides(ratio, beta)
        self.zero_over_zero = 0
        """Weights with S_T = S_P = 0 among those compared so far."""
        self._answers: list[Bools] = [np.empty(ratio_module.BLOCK, np.bool_) for _ in range(3)]

    def write(self, name: str, out: Bytes) -> None:
        """Pack the answers for a parameter with forget gradient into `out`; raises as `Ratio.sums`."""
        maps, place = self._ratio.maps(name), 0
        factors = self._sides.factors(maps)
        with np.errstate(over="ignore", under="ignore"):
            for sums, plain in self._ratio.sums(name):
                chosen = self._quick(sums, maps, factors) if plain and factors else self._exact(sums, maps)
                packed = np.packbits(chosen, bitorder="little")
                out[place : place + packed.size] = packed
                place += packed.size

    def _quick(self, sums: Sequence[Array], maps: Sequence[SaliencyMap], factors: Factors) -> Bools:
        target = sums[0]
        left, right = self._sides(sums, factors)
        sure, perhaps, positive = (each[: target.size] for each in self._answers)
        distance = left.view(np.int32)
        np.subtract(distance, right.view(np.int32), out=distance)
        far = margin(len(sums) - 1)
        np.greater(distance, far, out=sure)
        np.greater_equal(distance, -far, out=perhaps)
        if not target.min():
            np.greater(target, 0, out=positive)
            np.logical_and(sure, positive, out=sure)
            np.logical_and(perhaps, positive, out=perhaps)
            self.zero_over_zero += count_zeros(sums)
        np.not_equal(sure, perhaps, out=perhaps)
        if perhaps.any():
            places = np.flatnonzero(perhaps)
            sure[places] = self._exact([each[places] for each in sums], maps)
        return sure

    def _exact(self, sums: Sequence[Array], maps: Sequence[SaliencyMap]) -> Bools:
        target, kept = self._ratio.means(sums, maps)
        positive: Bools = target > 0
        if not positive.all():
            self.zero_over_zero += int(np.count_nonzero(kept[~positive] == 0))
        if self._beta != 1:
            np.multiply(kept, self._beta, out=kept)
        enough: Bools = target >= kept
        return np.logical_and(positive, enough, out=enough)


def margin(kept: int) -> int:
    """Ulps between two sides that are certainly in order: of the left one 2 roundings, of the right one 2 for each
    of its sums and one for each addition; doubled, for below a power of two ulps are half as large; and some more
    for the roundings of float64."""
    return 2 * (2 + 3 * kept) + 4


def count_zeros(sums: Sequence[Array]) -> int:
    """How many weights are 0 in all parts."""
    zero = sums[0] == 0
    for each in sums[1:]:
        zero &= each == 0
    return int(np.count_nonzero(zero))


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
