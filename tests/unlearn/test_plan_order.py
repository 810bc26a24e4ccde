"""Which samples each step sees: every sample once an epoch, the same forget order for every method, reproducible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from mmsurgery.errors import UnusableData
from mmsurgery.unlearn.plan import StepPlan, equations

if TYPE_CHECKING:
    from mmsurgery.data.samples import Sample

SETTINGS = {"epochs": 2, "batch_size": 4, "retain_batch": 3, "seed": 0}


@pytest.fixture
def named(make_sample: Callable[..., Sample]) -> Callable[[str, int], list[Sample]]:
    return lambda prefix, count: [make_sample(f"{prefix}{i}", "Which food ?", "rice") for i in range(count)]


def test_each_epoch_sees_every_forget_sample_once_in_another_order(named: Callable[[str, int], list[Sample]]) -> None:
    plan = equations(named("f", 10), named("r", 7), **SETTINGS)
    assert [len(step.forget) for step in plan] == [4, 4, 2] * 2  # ceil(10 / 4) steps an epoch, the last one partial
    first, second = (sum((step.forget for step in part), ()) for part in (plan[:3], plan[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_retain_set_is_cycled_without_a_gap(named: Callable[[str, int], list[Sample]]) -> None:
    plan = equations(named("f", 10), named("r", 7), **SETTINGS)
    stream = sum((step.retain for step in plan), ())
    assert len(stream) == 6 * 3
    assert sorted(stream[:7]) == sorted(stream[7:14]) == list(range(7))


def test_forget_order_depends_on_seed_and_ids_alone(named: Callable[[str, int], list[Sample]]) -> None:
    forget, retain = named("f", 10), named("r", 7)
    order = [step.forget for step in equations(forget, retain, **SETTINGS)]
    assert [step.forget for step in equations(forget, [], **SETTINGS)] == order
    assert [step.forget for step in equations(forget, retain, **{**SETTINGS, "retain_batch": 5})] == order
    assert [step.forget for step in equations(forget, retain, **{**SETTINGS, "seed": 1})] != order
    renamed = [forget[i].id for step in order for i in step]
    backwards = forget[::-1]
    again = equations(backwards, retain, **SETTINGS)
    assert [backwards[i].id for step in again for i in step.forget] == renamed


def test_an_order_is_the_same_on_every_machine(named: Callable[[str, int], list[Sample]]) -> None:
    """Worked out with the digests of `0/forget/0/f0` ... `f3`; a change breaks reproducibility."""
    import hashlib

    digests = {i: hashlib.sha256(f"0/forget/0/f{i}".encode()).hexdigest() for i in range(4)}
    expected = tuple(sorted(digests, key=lambda i: digests[i]))
    plan = equations(named("f", 4), [], **{**SETTINGS, "epochs": 1})
    assert plan == [StepPlan(expected, ())]


def test_a_set_smaller_than_its_batch_is_refused(named: Callable[[str, int], list[Sample]]) -> None:
    with pytest.raises(UnusableData, match="forget set has 3 samples, a batch takes 4"):
        equations(named("f", 3), named("r", 7), **SETTINGS)
    with pytest.raises(UnusableData, match="retain set has 2 samples, a batch takes 3"):
        equations(named("f", 4), named("r", 2), **SETTINGS)
