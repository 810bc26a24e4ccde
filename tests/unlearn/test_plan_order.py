"""Which samples each step sees: every sample once an epoch, the same forget order for every method, reproducible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.unlearn.plan import PROTOCOLS, StepPlan, equations, official

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


def kinds(plan: list[StepPlan]) -> str:
    assert all(bool(step.forget) != bool(step.retain) for step in plan)
    return "".join("F" if step.forget else "r" for step in plan)


@pytest.mark.parametrize(
    ("forget", "retain", "epoch"),
    [
        (8, 21, "FrrrFrrrr"),  # 2 and ceil(21 / 3) = 7 batches: f = 7 // 2 = 3, at t = 0, 3 and, none left, 6
        (6, 6, "FrFr"),  # 2 and 2 batches: f = 1
        (10, 5, "FrFrFr"),  # 3 and 2 batches: f = 0 in the published code; the retain set goes on
    ],
)
def test_official_alternates_in_the_ratio_of_the_batches(
    named: Callable[[str, int], list[Sample]], forget: int, retain: int, epoch: str
) -> None:
    plan = official(named("f", forget), named("r", retain), **SETTINGS)
    assert kinds(plan) == epoch * 2
    half = len(plan) // 2
    first = sum((step.forget for step in plan[:half]), ())
    assert sorted(first) == list(range(forget))
    assert {i for step in plan[:half] for i in step.retain} == set(range(retain))
    assert all(len(step.retain) <= 3 and len(step.forget) <= 4 for step in plan)


def test_official_has_the_same_forget_order_and_shuffles_each_epoch(named: Callable[[str, int], list[Sample]]) -> None:
    forget, retain = named("f", 10), named("r", 21)
    plan, joint = (PROTOCOLS[p](forget, retain, **SETTINGS) for p in ("official", "equations"))
    assert [s.forget for s in plan if s.forget] == [s.forget for s in joint]
    kept = [s.retain for s in plan if s.retain]
    assert [len(batch) for batch in kept] == [3] * 14
    first, second = (sum(part, ()) for part in (kept[:7], kept[7:]))
    assert sorted(first) == sorted(second) == list(range(21))
    assert first != second


def test_official_without_retain_data_is_the_forget_steps(named: Callable[[str, int], list[Sample]]) -> None:
    assert official(named("f", 10), [], **SETTINGS) == equations(named("f", 10), [], **SETTINGS)


@pytest.mark.parametrize("protocol", ["equations", "official"])
def test_a_run_without_end_is_refused_at_once(named: Callable[[str, int], list[Sample]], protocol: str) -> None:
    with pytest.raises(UsageError, match=r"1,000,000,000 epochs are \S+ steps, at most 1,000,000 are possible"):
        PROTOCOLS[protocol](named("f", 10), named("r", 7), **{**SETTINGS, "epochs": 10**9})
