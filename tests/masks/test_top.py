"""The exact top-k by streaming, against sorting."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsurgery.masks import top

# keys that share their first 16, 32 and 48 bits, equal keys, and keys that mean "never"
crowded = st.integers(0, 3).flatmap(
    lambda digits: st.integers(0, 3).map(lambda low: (0xABCD << 48) + (low << (16 * digits)))
)
keys = st.lists(st.one_of(st.just(0), crowded, st.integers(0, 2**64 - 1)), min_size=1, max_size=60)


def expected(values: list[int], count: int) -> list[bool]:
    """The first `count` by key descending, then position; never 0."""
    ranked = sorted((-value, index) for index, value in enumerate(values) if value)
    chosen = {index for _, index in ranked[:count]}
    return [index in chosen for index in range(len(values))]


@settings(max_examples=300, deadline=None)
@given(keys, st.integers(0, 70), st.sampled_from([8, 16, 64]), st.sampled_from([0, 3, 1 << 20]))
def test_largest_is_what_sorting_gives(values: list[int], count: int, block: int, few: int) -> None:
    array = np.array(values, np.uint64)
    plain = top._FEW

    def blocks() -> Iterator[top.Keys]:
        for start in range(0, len(array), block):
            yield array[start : start + block]

    top._FEW = few
    try:
        bits = np.unpackbits(top.largest(blocks, count), count=len(values), bitorder="little").astype(bool)
    finally:
        top._FEW = plain
    assert bits.tolist() == expected(values, count)


def test_ties_go_on_into_the_next_tensor() -> None:
    first, second = np.full(3, 7, np.uint64), np.array([7, 9, 7], np.uint64)
    key, ties = top.threshold(lambda: [first, second], 4)
    assert (key, ties) == (7, 3)
    bits, left = top.take([first], key, ties)
    assert (bits.tolist(), left) == ([0b111], 0)
    assert top.take([second], key, left)[0].tolist() == [0b010]


def test_order_of_keys_is_the_order_of_values() -> None:
    values = np.array([0.0, 5e-324, 1e-300, 1.0, np.nextafter(1, 2), 1e300, np.inf])
    found = top.order(values)
    assert found[0] > 0
    assert (np.diff(found.astype(object)) > 0).all()


@pytest.mark.parametrize("count", [1, 1000, 99_999, 100_000])
def test_many_keys(count: int) -> None:
    values = top.order(np.random.default_rng(0).chisquare(1, 100_000))
    bits = top.largest(lambda: iter([values]), count)
    assert int(np.bitwise_count(bits).sum()) == count
    chosen = np.unpackbits(bits, count=len(values), bitorder="little").astype(bool)
    assert count == len(values) or values[chosen].min() > values[~chosen].max()


def test_none_is_taken_of_keys_that_are_all_largest() -> None:
    keys = np.full(8, np.iinfo(np.uint64).max, np.uint64)
    assert not top.largest(lambda: iter([keys]), 0).any()
