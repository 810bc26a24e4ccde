"""The comparison that is mostly done in float32, against Eq. 7 written out in float64: the same bits, in any block."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.masks import ratio as ratio_module
from mmsurgery.masks.compare import Comparison, margin
from mmsurgery.masks.ratio import MIXTURES, Ratio
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.names import Address

NAME = "lm.0.attn.q"
PARTS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa", "realworld_vqa")
LEAST, MOST = np.float32(1e-45), np.finfo(np.float32).max


def saliency(part: str, units: int, arrays: dict[str, Any], **changes: Any) -> SaliencyMap:
    about = {"model_type": "llava", "model_sha256": "m" * 64, "data_sha256": "d" * 64, "estimator": "sample"}
    silent = changes.pop("no_gradient", {})
    values = {"part": part, "units": units, "arrays": arrays, "batch_size": None, "no_gradient": silent}
    return SaliencyMap(**(about | values | changes))


def plain(maps: Sequence[SaliencyMap], name: str, beta: float, mixture: str) -> tuple[np.ndarray, int]:
    """Eq. 7, whole arrays in float64, and how many weights are 0/0."""
    forget, *preserve = maps
    target = forget.arrays[name].astype(np.float64) / float(forget.units)
    zero = np.zeros(target.shape)
    sums = [each.arrays[name].astype(np.float64) if name in each.arrays else zero for each in preserve]
    if mixture == "pooled":
        kept = sum(sums, start=zero) / float(sum(each.units for each in preserve))
    else:
        means = [each / float(part.units) for each, part in zip(sums, preserve, strict=True)]
        kept = sum(means, start=zero) / len(preserve)
    return (target > 0) & (target >= beta * kept), int(np.count_nonzero((target == 0) & (kept == 0)))


def spread(generator: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Sums of which a tenth is zero."""
    found = np.asarray(np.minimum(generator.chisquare(1, size) * scale, MOST), np.float32)
    found[generator.random(size) < 0.1] = 0
    return found


def close(
    generator: np.random.Generator, maps: Sequence[SaliencyMap], name: str, beta: float, mixture: str
) -> np.ndarray:
    """Forget sums at most 3 ulps from where S_T = beta * S_P, a tenth of them zero."""
    forget, *preserve = maps
    silent = np.zeros(forget.arrays[name].shape)
    sums = [(each.units, each.arrays[name].astype(np.float64) if name in each.arrays else silent) for each in preserve]
    if mixture == "pooled":
        kept = sum((each for _, each in sums), start=silent) / sum(units for units, _ in sums)
    else:
        kept = sum((each / units for units, each in sums), start=silent) / len(sums)
    with np.errstate(over="ignore", under="ignore"):
        target = np.asarray(np.minimum(kept * beta * forget.units, MOST), np.float32)
    bits = target.view(np.int32).astype(np.int64) + generator.integers(-3, 4, target.shape)
    bits = np.where(generator.random(target.shape) < 0.1, 0, bits)
    return np.clip(bits, 0, MOST.view(np.int32)).astype(np.int32).view(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    parts=st.integers(1, 4),
    mixture=st.sampled_from(MIXTURES),
    scale=st.sampled_from([1e-7, 1.0, 1e-38, 1e-44, 3e38, 1e30]),
    beta=st.one_of(st.just(1.0), st.floats(0.3, 3), st.sampled_from([1e-40, 1e-300, 1e38, 1e200])),
)
def test_as_float64_where_both_sides_are_close(seed: int, parts: int, mixture: str, scale: float, beta: float) -> None:
    generator = np.random.default_rng(seed)
    maps = [
        saliency(part, int(generator.integers(1, 10_000)), {NAME: spread(generator, 500, scale)})
        for part in PARTS[: parts + 1]
    ]
    maps[0].arrays[NAME][:] = close(generator, maps, NAME, beta, mixture)
    check(maps, beta, mixture)


def check(maps: Sequence[SaliencyMap], beta: float, mixture: str = "pooled") -> None:
    expected, zeros = plain(maps, NAME, beta, mixture)
    out = np.full((expected.size + 7) // 8, 255, np.uint8)
    comparison = Comparison(Ratio(maps[0], maps[1:], mixture), beta)
    comparison.write(NAME, out)
    assert np.array_equal(np.unpackbits(out, count=expected.size, bitorder="little"), expected.reshape(-1))
    assert not np.unpackbits(out, bitorder="little")[expected.size :].any()
    assert comparison.zero_over_zero == zeros


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_pair_of_special_values(beta: float, mixture: str) -> None:
    special = np.array([0, -0.0, LEAST, 2 * LEAST, 1e-38, 1.2e-38, 1, np.nextafter(1, 2), 3e38, MOST], np.float32)
    target, first, second = (each.reshape(-1) for each in np.meshgrid(special, special, special))
    for chosen in (slice(None), ~(np.signbit(target) | np.signbit(first) | np.signbit(second))):
        pairs = zip(PARTS, (2, 3, 5), (target[chosen], first[chosen], second[chosen]), strict=False)
        check([saliency(part, units, {NAME: each}) for part, units, each in pairs], beta, mixture)


def test_most_weights_are_not_compared_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    arrays = [{NAME: np.exp(generator.normal(size=100_000) * 3).astype(np.float32)} for _ in range(4)]
    for each in arrays:
        each[NAME][:30_000] = 0
    arrays[0][NAME][-10:] = sum(each[NAME][-10:].astype(np.float64) for each in arrays[1:]) / (8 + 9 + 10) * 7
    maps = [saliency(part, 7 + i, each) for i, (part, each) in enumerate(zip(PARTS, arrays, strict=False))]
    twice, means = [], Ratio.means
    monkeypatch.setattr(Ratio, "means", lambda self, sums, maps: twice.append(sums[0].size) or means(self, sums, maps))
    check(maps, 1.0)
    assert 10 <= sum(twice) < 20


@pytest.mark.parametrize("mixture", MIXTURES)
def test_same_numbers_on_both_sides_are_selected(mixture: str) -> None:
    values = np.random.default_rng(0).chisquare(1, 5000).astype(np.float32)
    check([saliency(part, 3, {NAME: values}) for part in PARTS[:3]], 1.0, mixture)


def test_preserve_parts_without_gradient() -> None:
    values = np.array([0, 1e-45, 1e-40, 1, 0], np.float32)
    silent = [saliency(part, 3, {}, no_gradient={NAME: (5,)}) for part in PARTS[1:3]]
    for mixture in MIXTURES:
        check([saliency(PARTS[0], 2, {NAME: values}), *silent], 1.0, mixture)
        check([saliency(PARTS[0], 2, {NAME: values}), saliency(PARTS[3], 5, {NAME: values[::-1]}), *silent], 1, mixture)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float64_on_either_side(dtype: Any, side: int) -> None:
    sums = [spread(np.random.default_rng(i), 999, 1.0) for i in (1, 1)]
    sums[side] = sums[side].astype(np.float64) * (1 + 1e-12)
    sums[1 - side] = sums[1 - side].astype(dtype)
    check([saliency(part, 4, {NAME: each}) for part, each in zip(PARTS, sums, strict=False)], 1.0)


SHAPES = {"lm.0.attn.q": (3, 70), "lm.1.mlp.up": (2000,), "lm.embed": (), "lm.head": (0, 5), "vision.0.norm": (64,)}


@pytest.mark.parametrize("store", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [8, 64, 1 << 17])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_from_files_in_blocks_of_any_size(
    store: str, block: int, mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratio_module, "BLOCK", block)
    generator = np.random.default_rng(block)
    made = []
    for i, part in enumerate(PARTS[:4]):
        silent = {name: SHAPES[name] for place, name in enumerate(SHAPES) if place == i}
        arrays = {name: spread(generator, math.prod(s), 1e-6).reshape(s) for name, s in SHAPES.items()}
        arrays = {name: each for name, each in arrays.items() if name not in silent}
        made.append(saliency(part, 5 + i, arrays, no_gradient=silent, tied={"lm_head.weight": "lm.embed"}))
    for name, each in made[0].arrays.items():
        each[...] = close(generator, made, name, 0.9, mixture)
    for each in made:
        each.save(tmp_path / each.part, store=store)
    maps = [SaliencyMap.load(tmp_path / part) for part in PARTS[:4]]
    mask = ratio_mask(maps[0], maps[1:], beta=0.9, mixture=mixture, address=Address.parse)
    zeros = 0
    for name in SHAPES:
        if name in maps[0].arrays:
            expected, found = plain(maps, name, 0.9, mixture)
            zeros += found
            assert np.array_equal(mask[name], expected), name
        else:
            assert not mask[name].any()
    assert mask.counts["zero_over_zero"] == zeros
    assert mask.counts["no_gradient"] == math.prod(SHAPES["lm.0.attn.q"])
    assert mask.provenance["tied"] == {"lm_head.weight": "lm.embed"}


@pytest.mark.parametrize("density", [None, 0.3])
def test_a_mask_of_files_takes_memory_for_its_bits_alone(
    density: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratio_module, "BLOCK", 1 << 14)
    monkeypatch.setattr("mmsurgery.masks.rank.HELD", 1 << 12)
    numel = 1_500_000  # 6 MB a part
    values = np.random.default_rng(0).chisquare(1, (1500, 1000)).astype(np.float32)
    for units, part in enumerate(PARTS[:3], start=1):
        saliency(part, units, {NAME: np.roll(values, units)}).save(tmp_path / part)
    maps = [SaliencyMap.load(tmp_path / part) for part in PARTS[:3]]
    ratio_mask(maps[0], maps[1:], density=density, address=Address.parse)
    tracemalloc.start()
    mask = ratio_mask(maps[0], maps[1:], density=density, address=Address.parse)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask.total == numel
    assert peak < 4 << 20  # less than the sums of any part


def test_the_margin_is_what_the_roundings_can_be() -> None:
    assert [margin(kept) for kept in (0, 1, 3)] == [8, 14, 26]
