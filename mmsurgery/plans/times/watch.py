"""A stopwatch that stands where a verb shows its progress, and ends the work once it has seen enough of it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

BOX = 3.0
"""Seconds that units of one verb are timed for, about: those of all its parts or columns together."""
SHARE = 0.1
"""Of the work that is timed, if `LEAST` units are less."""
LEAST = 6
"""Units that are timed after the first one, unless `BOX` is spent before: `in_turn` is balanced after so many."""
SPREAD = 0.04
"""Standard error of the mean, as a share of it, below which nothing more is timed."""


LONG = 10.0
"""Seconds that one run of several groups may take, or `SHARE` of them all."""
SOME = 4
"""Groups of a run that is to be unlike that of one."""


class Enough(Exception):
    """Raised out of the work that is timed."""


def now() -> float:
    """Seconds of the clock by which all is timed."""
    return time.perf_counter()


@dataclass
class Watch:
    """A `Progress` that times what a verb does between two calls of `advance`.

    Args:
        work: how much the verb will do of this kind, in what its stage counts.
        box: seconds to spend.
    """

    work: float
    box: float
    times: list[float] = field(default_factory=list)
    """Seconds of each unit of the work; the first one warms up."""
    amounts: list[int] = field(default_factory=list)
    """How far each unit went."""

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        last = now()

        def advance(amount: int) -> None:
            nonlocal last
            if not amount:  # what was done before the stage
                return
            self.times.append(now() - last)
            self.amounts.append(amount)
            if self.enough:
                raise Enough
            last = now()

        yield advance

    def note(self, text: str) -> None:
        return

    @property
    def enough(self) -> bool:
        """Whether more would not say more, or the time is spent."""
        seen, spent = self.times[1:], sum(self.times)
        if spent >= self.box:
            return True
        if len(seen) < LEAST:
            return False
        error: float = statistics.stdev(seen) / len(seen) ** 0.5
        return error <= SPREAD * statistics.fmean(seen) or spent >= SHARE * self.work * self.each

    @property
    def each(self) -> float:
        """Seconds of 1 of the work, once it is warm; 0 where nothing was timed."""
        warm = slice(1, None) if len(self.times) > 1 else slice(None)
        return sum(self.times[warm]) / max(sum(self.amounts[warm]), 1)

    @property
    def seconds(self) -> float:
        """Of all the work: the first unit as it was, the rest as the others."""
        first, done = (self.times[0], self.amounts[0]) if self.times else (0.0, 0)
        return first + max(self.work - done, 0) * self.each


def watched(run: Callable[[Watch], object], *, work: float, box: float) -> Watch:
    """The watch after a run that it ended, or that had nothing more to do."""
    watch = Watch(work, box)
    with contextlib.suppress(Enough):
        run(watch)
    return watch


def in_turn(units: Sequence[T], size: Callable[[T], float]) -> list[T]:
    """Units in an order whose every beginning is spread over their sizes: the median, the quartiles, and so on.

    The places are those of van der Corput's sequence among the units sorted by size.
    """
    by_size = sorted(units, key=size)
    found: dict[int, T] = {}
    number = 1
    while len(found) < len(by_size):
        place = int(_reversed(number) * len(by_size))
        found.setdefault(place, by_size[place])
        number += 1
    return list(found.values())


def _reversed(number: int) -> float:
    """The binary digits of a number behind the point, the last one first."""
    value, unit = 0.0, 0.5
    while number:
        value, number, unit = value + unit * (number & 1), number >> 1, unit / 2
    return value


@dataclass
class Growth:
    """Times work that is done in batches, as large as there is work for: runs of different sizes tell apart what a run
    takes by itself, and what each member adds."""

    alone: float | None = None
    """Seconds of a run by itself, as they were the last time; a small piece of other work then says enough."""

    def seconds(self, groups: Sequence[Sequence[Any]], run: Callable[[list[Any]], object], box: float) -> float:
        """Seconds that `run` takes for the members of all groups at once.

        The very first run warms up; then some and one group are run, and up to four times as many as before, as long
        as there is time.

        Args:
            run: works on members, in batches of its own.
            box: seconds to spend, about.
        """
        cold, sizes, times = self.alone is None, list[int](), list[float]()
        wanted, start, size, each = [1, SOME, 1] if cold else [SOME], 0, 1, 0.0
        while start < len(groups) and (wanted or sum(times) < box):
            size = wanted.pop(0) if wanted else 4 * size
            if each:
                most = max(LONG if wanted else box - sum(times), SHARE * len(groups) * each if wanted else 0.0)
                size = min(size, max(1, int(most / each)))
            chosen = [member for group in groups[start : start + size] for member in group]
            begun = now()
            run(chosen)
            times.append(now() - begun)
            sizes.append(len(chosen))
            start += size
            each = times[-1] / size
        return self._scaled(sum(map(len, groups)), sizes, times, cold) if times else 0.0

    def _scaled(self, total: int, sizes: list[int], times: list[float], cold: bool) -> float:
        if cold and len(sizes) == 1:
            return times[0] * total / sizes[0]
        warm = slice(1 if cold else 0, None)
        alone, each = line(sizes[warm], times[warm], self.alone or 0.0)
        extra = max(times[0] - alone - each * sizes[0], 0.0) if cold else 0.0
        self.alone = alone
        return extra + alone + each * total


def line(sizes: Sequence[int], times: Sequence[float], known: float = 0.0) -> tuple[float, float]:
    """What a run takes by itself, and what a member adds: the straight line of least squares. One that would fall or
    begin below zero, or of runs of one size, begins at what is known instead, or at the fastest run."""
    if len(set(sizes)) > 1:
        each, alone = statistics.linear_regression(sizes, times)
        if alone >= 0 and each >= 0:
            return alone, each
    known = min(known, *times)
    return known, (sum(times) - known * len(times)) / max(sum(sizes), 1)
