"""Forget and preserve saliency of one model side by side, block by block, in memory that no model's size changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmsurgery.artifacts.saliency_map import Array, SaliencyMap
from mmsurgery.errors import Mismatch, UnusableData, UsageError, unknown
from mmsurgery.masks import top

Float64 = np.ndarray[Any, np.dtype[np.float64]]

MIXTURES = ("pooled", "equal")
BLOCK = 1 << 17
"""Weights that are compared at a time, a multiple of 8; blocks of all parts fit into the processor's cache."""

_BITS: dict[str, tuple[Any, int]] = {"<f4": ("<u4", 0xFF << 23), "<f8": ("<u8", 0x7FF << 52)}
"""Float dtype -> its bits as unsigned integers, and what infinity is as one."""


class Ratio:
    """S_T and S_P of Eq. 7.

    Args:
        forget: S_T.
        preserve: the parts of S_P; a part without gradient for a parameter counts as 0 there.
        mixture: `pooled` (sum of the sums over sum of the units) or `equal` (mean of the parts' S).

    Raises:
        Mismatch: if the maps differ in model, estimator, batch size, template, names or shapes.
        UsageError: for no preserve map or an unknown mixture.
    """

    def __init__(self, forget: SaliencyMap, preserve: Sequence[SaliencyMap], mixture: str = "pooled") -> None:
        if mixture not in MIXTURES:
            raise unknown("mixture", mixture, MIXTURES)
        if not preserve:
            raise UsageError("a mask needs preserve saliency", "name at least one preserve map")
        for other in preserve:
            forget.same_kind(other)
        self.forget, self.preserve, self.mixture = forget, tuple(preserve), mixture
        self.shapes = {name: self._shape(name) for name in forget.names}
        self.units = sum(part.units for part in preserve)
        """Of all preserve parts."""
        self._squared = forget.estimator == "dataset"
        self._buffers = np.empty((3, BLOCK))

    def _shape(self, name: str) -> tuple[int, ...]:
        known = {shape for each in (self.forget, *self.preserve) if (shape := each.shape(name)) is not None}
        if len(known) != 1:
            what = "have different shapes for" if known else "do not say the shape of"
            raise Mismatch(f"the saliency maps {what} {name}", "measure all of them again with --force")
        return known.pop()

    def maps(self, name: str) -> list[SaliencyMap]:
        """The forget map, then the preserve maps that have a gradient for a parameter."""
        return [self.forget, *(part for part in self.preserve if name in part.arrays)]

    def sums(self, name: str) -> Iterator[tuple[list[Array], bool]]:
        """The sums that `maps` store for a parameter with forget gradient, flat, at most `BLOCK` at a time, valid
        until the next are asked for; and whether all are float32 without a sign bit.

        Raises:
            UnusableData: for NaN, infinity or negative saliency, naming part and parameter.
        """
        maps = self.maps(name)
        for pieces in zip(*(each.blocks(name, BLOCK) for each in maps), strict=True):
            plain = [self._check(values, each.part, name) for each, values in zip(maps, pieces, strict=True)]
            yield list(pieces), all(plain)

    def _check(self, values: Array, part: str, name: str) -> bool:
        if not values.size:
            return False
        bits, infinity = _BITS.get(values.dtype.str, (None, 0))
        # as bits, non-negative finite values are those below infinity: one pass instead of two
        if not self._squared and bits is not None and values.view(bits).max() < infinity:
            return values.itemsize == 4
        least = values.min()
        if not ((least > -math.inf if self._squared else least >= 0) and values.max() < math.inf):
            what = "NaN or infinite" if self._squared else "NaN, infinite or negative"
            raise UnusableData(f"saliency '{part}' of {name} holds {what} values", "measure it again with --force")
        return False

    def means(self, sums: Sequence[Array], maps: Sequence[SaliencyMap]) -> tuple[Float64, Float64]:
        """S_T and S_P from what `maps` store for some weights, at most `BLOCK`; valid until the next call."""
        target, kept = (buffer[: sums[0].size] for buffer in self._buffers[:2])
        self._mean(sums[0], self.forget.units, target)
        self._mix(sums[1:], [each.units for each in maps[1:]], kept)
        return target, kept

    def blocks(self, name: str) -> Iterator[tuple[Float64, Float64]]:
        """S_T and S_P of a parameter with forget gradient, flat, float64, at most `BLOCK` at a time; valid until
        the next pair is asked for. Raises as `sums`."""
        maps = self.maps(name)
        for sums, _ in self.sums(name):
            yield self.means(sums, maps)

    def _mean(self, sums: Array, units: int, out: Float64) -> None:
        if sums is not out:
            np.copyto(out, sums)
        np.divide(out, float(units), out=out)
        if self._squared:
            np.square(out, out=out)

    def _mix(self, pieces: Sequence[Array], units: Sequence[int], out: Float64) -> None:
        if self.mixture == "pooled" and pieces:
            np.copyto(out, pieces[0])
            for sums in pieces[1:]:
                np.add(out, sums, out=out, dtype=np.float64)
            self._mean(out, self.units, out)
            return
        out.fill(0)
        mean = self._buffers[2, : out.size]
        for sums, count in zip(pieces, units, strict=True):
            self._mean(sums, count, mean)
            np.add(out, mean, out=out)
        np.divide(out, len(self.preserve), out=out)

    def keys(self, sums: Sequence[Array], maps: Sequence[SaliencyMap]) -> top.Keys:
        """Keys that sort as S_T / S_P of what `maps` store for some weights, at most `BLOCK`: infinite where S_P = 0,
        never (0) where S_T = 0."""
        target, kept = self.means(sums, maps)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(target > 0, top.order(target / kept), np.uint64(0))
