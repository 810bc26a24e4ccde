"""The largest ratios, found in float32 and decided in float64, against sorting all of them in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.masks import rank as rank_module
from mmsurgery.masks import ratio as ratio_module
from mmsurgery.masks import top
from mmsurgery.masks.rank import Ranking
from mmsurgery.masks.ratio import MIXTURES, Ratio

PARTS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")
MOST = float(np.finfo(np.float32).max)


def saliency(part: str, units: int, arrays: dict[str, Any], estimator: str = "sample") -> SaliencyMap:
    about = {"model_type": "llava", "model_sha256": "m" * 64, "data_sha256": "d" * 64, "batch_size": None}
    return SaliencyMap(part=part, units=units, estimator=estimator, arrays=arrays, no_gradient={}, **about)


def plain(maps: Sequence[SaliencyMap], names: Sequence[str], mixture: str, wanted: int) -> tuple[dict[str, Any], int]:
    """The first `wanted` by S_T / S_P descending, then name and place; never those with S_T = 0."""
    forget, *preserve = maps
    rows, zeros = [], 0
    for name in names:
        sums = [each.arrays[name].astype(np.float64) for each in preserve]
        target = forget.arrays[name].astype(np.float64) / forget.units
        if mixture == "pooled":
            kept = np.add.reduce(sums) / sum(each.units for each in preserve)
        else:
            kept = np.add.reduce([each / part.units for each, part in zip(sums, preserve, strict=True)]) / len(preserve)
        if forget.estimator == "dataset":
            target, kept = target * target, kept * kept
        with np.errstate(all="ignore"):
            ratio = target / kept
        zeros += int(np.isnan(ratio).sum())
        rows += [(-r, name, place) for place, (r, t) in enumerate(zip(ratio, target, strict=True)) if t > 0]
    chosen = {name: np.zeros(forget.arrays[name].size, bool) for name in names}
    for _, name, place in sorted(rows)[:wanted]:
        chosen[name][place] = True
    return chosen, zeros


def check(maps: Sequence[SaliencyMap], wanted: int, mixture: str = "pooled") -> None:
    names = sorted(maps[0].arrays)
    expected, zeros = plain(maps, names, mixture, wanted)
    ranking = Ranking(Ratio(maps[0], maps[1:], mixture))
    cut = ranking.cut(names, wanted)
    for name in names:
        size = expected[name].size
        out = np.full((size + 7) // 8, 255, np.uint8)
        cut = ranking.write(name, cut, out)
        assert np.array_equal(np.unpackbits(out, count=size, bitorder="little"), expected[name])
        assert not np.unpackbits(out, bitorder="little")[size:].any()
    assert ranking.zero_over_zero == zeros


def crowded(seed: int, parts: int, scale: float, equal: bool) -> list[SaliencyMap]:
    """Ratios a few ulps from one of three numbers, some infinite, 0 or 0/0; with `equal` many the very same."""
    generator = np.random.default_rng(seed)
    units = generator.integers(1, 1000, parts + 1).tolist()
    maps = [saliency(part, count, {}) for part, count in zip(PARTS, units, strict=False)]
    for name, size in (("a", 300), ("b", 77)):
        sums = np.minimum(generator.chisquare(1, (parts, size)) * scale, MOST).astype(np.float32)
        if equal:
            sums[:] = np.float32(scale)
        sums[:, generator.random(size) < 0.1] = 0
        kept = np.add.reduce(sums.astype(np.float64)) / sum(units[1:])
        exact = kept * generator.choice([1 / 3, 1.0, 70.0], size) * units[0]
        target = np.minimum(exact, MOST).astype(np.float32)
        if not equal:
            bits = target.view(np.int32).astype(np.int64) + generator.integers(-3, 4, size)
            target = np.clip(bits, 0, np.float32(MOST).view(np.int32)).astype(np.int32).view(np.float32)
        target[generator.random(size) < 0.1] = 0
        for each, values in zip(maps, (target, *sums), strict=True):
            each.arrays[name] = values  # type: ignore[index]
    return maps


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    parts=st.integers(1, 3),
    scale=st.sampled_from([1e-7, 1.0, 1e-38, 1e-44, 1e-41, 3e38, 1e30]),
    mixture=st.sampled_from(MIXTURES),
    wanted=st.integers(1, 400),
    equal=st.booleans(),
    held=st.sampled_from([0, 1 << 20]),
    block=st.sampled_from([64, 1 << 17]),
)
def test_as_sorted_in_float64(
    seed: int, parts: int, scale: float, mixture: str, wanted: int, equal: bool, held: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_module, "HELD", held)
        patch.setattr(ratio_module, "BLOCK", block)
        check(crowded(seed, parts, scale, equal), wanted, mixture)


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_ratios_about_the_border_of_two_bins(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_module, "HELD", held)
    generator = np.random.default_rng(0)
    sums = generator.chisquare(1, (3, 200)).astype(np.float32)
    kept = np.add.reduce(sums.astype(np.float64)) / (7 + 11 + 13) * 5
    target = (kept.astype(np.float32).view(np.int32) + generator.integers(-1, 2, 200, np.int32)).view(np.float32)
    maps = [
        saliency(part, units, {"a": each})
        for part, units, each in zip(PARTS, (5, 7, 11, 13), (target, *sums), strict=True)
    ]
    for wanted in range(1, 200, 3):
        check(maps, wanted)


@pytest.mark.parametrize("wanted", [1, 5, 20, 100, 500, 1000])
def test_special_values(wanted: int) -> None:
    special = np.array([0, 1e-45, 1e-40, 1e-38, 1.2e-38, 1, np.nextafter(1, 2), 1e30, 3e38, MOST], np.float32)
    target, first, second = (each.reshape(-1) for each in np.meshgrid(special, special, special))
    for chosen in (slice(None), first >= 1, (target >= 1) | (target == 0)):
        sums = zip(PARTS, (2, 3, 5), (target[chosen], first[chosen], second[chosen]), strict=False)
        check([saliency(part, units, {"a": each}) for part, units, each in sums], wanted)


def test_squares_of_signed_sums_and_float64() -> None:
    generator = np.random.default_rng(0)
    for estimator, dtype in (("dataset", np.float32), ("sample", np.float64)):
        arrays = [np.asarray(generator.chisquare(1, 500) - (estimator == "dataset"), dtype) for _ in range(3)]
        maps = [saliency(part, 3, {"a": each}, estimator) for part, each in zip(PARTS, arrays, strict=False)]
        for wanted in (1, 100, 499):
            check(maps, wanted)


def test_only_what_is_close_is_ranked_by_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    arrays = [np.exp(generator.normal(size=50_000) * 3).astype(np.float32) for _ in range(3)]
    for each in arrays:
        each[:10_000] = 0
    maps = [saliency(part, 3, {"a": each}) for part, each in zip(PARTS, arrays, strict=False)]
    sizes, means = [], Ratio.means
    monkeypatch.setattr(Ratio, "means", lambda self, sums, maps: sizes.append(sums[0].size) or means(self, sums, maps))
    check(maps, 9_000)
    assert 0 < sum(sizes) < 1000


def test_keys_that_are_held_are_those_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "threshold", lambda stream, count: pytest.fail(f"{[each.size for each in stream()]}"))
    values = np.zeros(1000, np.float32)
    values[:3] = 1e-40
    maps = [saliency("forget_vqa", 1, {"a": values}), saliency("retain_vqa", 1, {"a": np.full(1000, 1e3, np.float32)})]
    with pytest.raises(pytest.fail.Exception, match=r"\[3\]"):
        Ranking(Ratio(maps[0], maps[1:])).cut(["a"], 2)


def test_a_product_that_becomes_0_where_no_weight_is() -> None:
    """A target that is subnormal, times a factor below 1, over nothing: 0/0 in float32, infinity in float64."""
    target, kept = np.full(64, 1.0, np.float32), np.full(64, 2.0, np.float32)
    target[6:8], kept[6:8] = 1e-45, 0
    check(
        [
            saliency(part, units, {"a": each})
            for part, units, each in zip(PARTS, (100, 5), (target, kept), strict=False)
        ],
        1,
    )
