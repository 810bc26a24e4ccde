"""Which samples each optimizer step sees, fixed before the first one.

Orders are sorted by digests of (seed, epoch, sample id): the same on every machine and version, and the
same forget order for every method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmsurgery.data.samples import Sample
from mmsurgery.errors import UnusableData


@dataclass(frozen=True)
class StepPlan:
    """The samples of one optimizer step, as places in the forget and in the retain set."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]


def equations(
    forget: Sequence[Sample],
    retain: Sequence[Sample],
    *,
    epochs: int,
    batch_size: int,
    retain_batch: int,
    seed: int,
) -> list[StepPlan]:
    """Protocol `equations`: one forget and one retain batch a step, ceil(forget samples / batch size) steps
    an epoch. The forget set is shuffled anew each epoch; the retain set is cycled in an order of its own.

    Args:
        retain: empty for a method without retain data.

    Raises:
        UnusableData: if a set is smaller than its batch.
    """
    _check_size("forget", len(forget), batch_size)
    if retain:
        _check_size("retain", len(retain), retain_batch)
    stream = _cycled(retain, seed)
    plan = []
    for epoch in range(epochs):
        order = _shuffled(forget, f"{seed}/forget/{epoch}")
        for start in range(0, len(order), batch_size):
            kept = tuple(next(stream) for _ in range(retain_batch)) if retain else ()
            plan.append(StepPlan(tuple(order[start : start + batch_size]), kept))
    return plan


def _check_size(which: str, samples: int, batch: int) -> None:
    if samples < batch:
        raise UnusableData(
            f"the {which} set has {samples} samples, a batch takes {batch}", "use a smaller batch, or more data"
        )


def _shuffled(samples: Sequence[Sample], key: str) -> list[int]:
    return sorted(range(len(samples)), key=lambda place: hashlib.sha256(f"{key}/{samples[place].id}".encode()).digest())


def _cycled(samples: Sequence[Sample], seed: int) -> Iterator[int]:
    cycle = 0
    while True:
        yield from _shuffled(samples, f"{seed}/retain/{cycle}")
        cycle += 1
