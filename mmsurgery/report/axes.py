"""Axes of charts: values to coordinates, with round ends around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_PAD = 7.0
"""Room for marks that lie on the border."""


class Axis:
    """Maps shares, or differences of shares, to a coordinate; ends at round numbers around the values."""

    def __init__(
        self,
        values: Sequence[float],
        start: float,
        end: float,
        bounds: tuple[float, float] = (0.0, 1.0),
        most: int = 6,
    ) -> None:
        """
        Args:
            bounds: beyond which the axis does not go.
            most: steps between ticks that the values may need.
        """
        low, high = min(values, default=bounds[0]), max(values, default=bounds[1])
        steps = (0.02, 0.05, 0.1, 0.2, 0.5)
        self.step = next(step for step in steps if high - low <= most * step or step == steps[-1])
        self.low = max(math.floor(low / self.step - 0.15) * self.step, bounds[0])
        self.high = min(max(math.ceil(high / self.step + 0.15) * self.step, self.low + self.step), bounds[1])
        self.low = min(self.low, self.high - self.step)
        self.start, self.end = start, end
        self.pad = _PAD if end > start else -_PAD

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + self.pad + (self.end - self.start - 2 * self.pad) * share

    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + place * self.step for place in range(count + 1)]


class Scale:
    """Maps the few values of a sweep to a coordinate: logarithmic where they span more than a decade."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        self.log = low > 0 and high / low > 10
        self._low, self._high = self._at(low), self._at(high)
        self.start, self.end = start + 2 * _PAD, end - 2 * _PAD

    def _at(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        if self._high == self._low:
            return (self.start + self.end) / 2
        return self.start + (self.end - self.start) * (self._at(value) - self._low) / (self._high - self._low)
