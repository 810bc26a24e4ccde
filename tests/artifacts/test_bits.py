"""Bits of many parameters in one buffer: places, counts and operations, whatever the sizes and pieces."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts import bits as bits_module
from mmsurgery.artifacts.bits import Layout, MaskParameter, Packed, count_ones, pack, unpack
from mmsurgery.artifacts.mask import Mask
from mmsurgery.names import Address

SHAPES = {"d": (65,), "b": (63,), "a": (64,), "e": (), "c": (0, 3), "g": (2, 3, 71), "f": (128,), "h": (1,)}
"""Not sorted by name; their ends lie on, before and behind the ends of bytes and words."""
PLACE = Address("lm", None, "embed")


def values(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: generator.random(shape) < 0.5 for name, shape in SHAPES.items()}


def parameters(booleans: dict[str, Any]) -> dict[str, MaskParameter]:
    return {name: MaskParameter(each.shape, PLACE, pack(each)) for name, each in booleans.items()}


def mask(booleans: dict[str, Any]) -> Mask:
    rest: dict[str, Any] = {"rule": "ratio", "beta": 1.0, "estimator": "sample", "mixture": "pooled"}
    base = {"model_type": "llava", "model_sha256": "0" * 64}
    return Mask(parameters=parameters(booleans), base=base, modules="lm", **rest)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 255, 256, 257, 263, 264, 265, 5003])
def test_ones_of_any_number_of_bytes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits_module, "_PIECE", 16)
    found = np.frombuffer(np.random.default_rng(size).bytes(size), np.uint8)
    assert count_ones(found) == int(np.unpackbits(found).sum())
    assert count_ones(np.full(size, 255, np.uint8)) == 8 * size


def test_each_parameter_has_its_bits_back_and_its_own_words() -> None:
    booleans = values(0)
    packed = Packed.of(parameters(booleans))
    assert list(packed) == sorted(SHAPES)
    assert len(packed) == len(SHAPES)
    assert ("a" in packed, "z" in packed) == (True, False)
    for name, expected in booleans.items():
        assert np.array_equal(unpack(packed[name].bits, packed[name].shape), expected)
        assert packed[name].bits.size == (expected.size + 7) // 8
        assert packed[name] is packed[name]  # so that its digest is computed once
    assert packed.selected == sum(int(each.sum()) for each in booleans.values())
    assert packed.layout.total == sum(each.size for each in booleans.values())
    assert Packed.of(packed) is packed
    with pytest.raises(KeyError):
        packed["z"]
    with pytest.raises(ValueError, match="read-only"):
        packed["a"].bits[0] = 0


@pytest.mark.parametrize("piece", [1, 2, 5, 1 << 15])
@pytest.mark.parametrize("sign", [operator.and_, operator.or_, operator.xor, operator.sub])
def test_operations_are_those_of_booleans(
    sign: Callable[[Any, Any], Any], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bits_module, "_PIECE", piece)
    mine, theirs = values(1), values(2)
    other = dict(reversed(theirs.items()))  # in another order
    found = sign(mask(mine), mask(other))
    expected = {
        name: mine[name] & ~theirs[name] if sign is operator.sub else sign(mine[name], theirs[name]) for name in SHAPES
    }
    assert all(np.array_equal(found[name], expected[name]) for name in SHAPES)
    ones = sum(int(each.sum()) for each in expected.values())
    assert (found.selected, found.counts["selected"]) == (ones, ones)
    assert found == mask(expected)


def test_flipped_twice_is_the_same_and_pads_stay_zero() -> None:
    booleans = values(3)
    one = mask(booleans)
    flipped = ~one
    assert flipped == mask({name: ~each for name, each in booleans.items()})
    assert flipped.selected == sum(int((~each).sum()) for each in booleans.values())
    buffer = Packed.of(flipped.parameters)
    assert sum(int(each) for each in np.bitwise_count(buffer.words)) == flipped.selected
    assert ~flipped == one


def test_only_some() -> None:
    booleans = values(4)
    packed = Packed.of(parameters(booleans)).only({"a", "g", "c"})
    for name, expected in booleans.items():
        kept = expected if name in ("a", "g", "c") else np.zeros_like(expected)
        assert np.array_equal(unpack(packed[name].bits, packed[name].shape), kept)
    assert packed.selected == int(booleans["a"].sum() + booleans["g"].sum())


def test_what_derives_from_a_mask_has_its_layout_and_needs_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = mask(values(5)), mask(values(6))
    made = one & other
    monkeypatch.setattr(Packed, "__getitem__", lambda *_: pytest.fail("one parameter after the other"))
    assert isinstance(made.parameters, Packed)
    again = (made | made) - made
    assert isinstance(again.parameters, Packed)
    assert again.parameters.layout is made.parameters.layout
    assert isinstance(made.parameters.layout, Layout)
    assert (again.selected, again.total) == (0, made.total)
