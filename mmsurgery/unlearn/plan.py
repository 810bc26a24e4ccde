"""Which samples each optimizer step sees, fixed before the first one.

Orders are sorted by digests of (seed, epoch, sample id): the same on every machine and version, and the
same forget order for every method.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mmsurgery.data.samples import Sample
from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.methods.base import Beside

MAX_STEPS = 1_000_000
"""Optimizer steps of a run, at most: its plan and its curve are held in memory."""


@dataclass(frozen=True)
class StepPlan:
    """The samples of one optimizer step, as places in the forget and in the retain set."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    beside: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Further data by name, as places in it (see `Method.beside`)."""


def with_beside(
    plan: Sequence[StepPlan], sets: Mapping[str, Sequence[Sample]], sizes: Mapping[Beside, int], seed: int
) -> list[StepPlan]:
    """Every step with samples of further sets, each cycled in an order of its own.

    Raises:
        UnusableData: if a set is smaller than its batch.
    """
    for name, size in sizes.items():
        _check_size(name, len(sets[name]), size)
    streams = {name: _cycled(sets[name], seed, f"beside/{name}") for name in sizes}
    return [
        dataclasses.replace(
            step, beside={name: tuple(itertools.islice(streams[name], size)) for name, size in sizes.items()}
        )
        for step in plan
    ]


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
        UsageError: if there are more steps than `MAX_STEPS`.
    """
    batches = _batches(forget, retain, batch_size, retain_batch)
    _check_steps(epochs, batches[0])
    stream = _cycled(retain, seed)
    return [
        StepPlan(chosen, tuple(itertools.islice(stream, retain_batch)) if retain else ())
        for epoch in range(epochs)
        for chosen in _forget_batches(forget, batch_size, seed, epoch)
    ]


def official(
    forget: Sequence[Sample],
    retain: Sequence[Sample],
    *,
    epochs: int,
    batch_size: int,
    retain_batch: int,
    seed: int,
) -> list[StepPlan]:
    """Protocol `official`, the alternation of the published code: an epoch goes once through the retain set,
    a batch a step, and a forget step of its own stands before every f-th of them, f = retain batches //
    forget batches (19, 9 and 5 at 5, 10 and 15 % forget).

    Where the forget set has more batches than the retain set (f = 0, an error there) one stands before
    each, and the retain set goes on in a new order until all are used.

    Args, raises: as `equations`, whose forget order this has too.
    """
    forget_batches, retain_batches = _batches(forget, retain, batch_size, retain_batch)
    if not retain:
        return equations(forget, retain, epochs=epochs, batch_size=batch_size, retain_batch=retain_batch, seed=seed)
    every, slots = max(1, retain_batches // forget_batches), max(retain_batches, forget_batches)
    _check_steps(epochs, forget_batches + slots)
    orders = (_shuffled(retain, f"{seed}/retain/{cycle}") for cycle in itertools.count())
    stream = (
        tuple(order[start : start + retain_batch]) for order in orders for start in range(0, len(order), retain_batch)
    )
    plan = []
    for epoch in range(epochs):
        ascents = iter(_forget_batches(forget, batch_size, seed, epoch))
        for slot in range(slots):
            if slot % every == 0 and (chosen := next(ascents, None)) is not None:
                plan.append(StepPlan(chosen, ()))
            plan.append(StepPlan((), next(stream)))
    return plan


PROTOCOLS = {"equations": equations, "official": official}


def _batches(forget: Sequence[Sample], retain: Sequence[Sample], size: int, retain_size: int) -> tuple[int, int]:
    """Batches of the forget and of the retain set, the last one of each perhaps partial."""
    _check_size("forget", len(forget), size)
    if retain:
        _check_size("retain", len(retain), retain_size)
    return -(-len(forget) // size), -(-len(retain) // retain_size)


def _check_steps(epochs: int, steps: int) -> None:
    if epochs * steps > MAX_STEPS:
        raise UsageError(
            f"{epochs:,} epochs are {epochs * steps:,} steps, at most {MAX_STEPS:,} are possible", "use fewer --epochs"
        )


def _forget_batches(forget: Sequence[Sample], size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    order = _shuffled(forget, f"{seed}/forget/{epoch}")
    return [tuple(order[start : start + size]) for start in range(0, len(order), size)]


def _check_size(which: str, samples: int, batch: int) -> None:
    if samples < batch:
        raise UnusableData(
            f"the {which} set has {samples} samples, a batch takes {batch}", "use a smaller batch, or more data"
        )


def _shuffled(samples: Sequence[Sample], key: str) -> list[int]:
    return sorted(range(len(samples)), key=lambda place: hashlib.sha256(f"{key}/{samples[place].id}".encode()).digest())


def _cycled(samples: Sequence[Sample], seed: int, which: str = "retain") -> Iterator[int]:
    cycle = 0
    while True:
        yield from _shuffled(samples, f"{seed}/{which}/{cycle}")
        cycle += 1
