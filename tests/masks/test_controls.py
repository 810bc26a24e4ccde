"""Controls have a mask's count in every tensor and select what they say."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import Mismatch, UnusableData
from mmsurgery.masks.controls import forget_only_mask, inverse_mask, magnitude_mask, random_mask
from mmsurgery.masks.ratio import Ratio
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.names import Address

SHAPES = {f"lm.{i}.mlp.up_{i}": shape for i, shape in enumerate([(1,), (7,), (8,), (17, 3), (), (0, 3), (40, 40)])}
SILENT = "lm.9.mlp.up_9"


def address(name: str) -> Address:
    return Address.parse(name.rpartition("_")[0])


def saliency(seed: int, part: str) -> SaliencyMap:
    generator = np.random.default_rng(seed)
    arrays = {n: np.asarray(generator.choice([0, 0.5, 1, 2, 3], s) * 1e-6, np.float32) for n, s in SHAPES.items()}
    kind = {"estimator": "sample", "batch_size": None, "model_type": "llava", "model_sha256": "m" * 64}
    return SaliencyMap(
        part=part, units=seed + 1, data_sha256="d" * 64, arrays=arrays, no_gradient={SILENT: (4,)}, **kind
    )


@pytest.fixture
def forget() -> SaliencyMap:
    return saliency(1, "forget_vqa")


@pytest.fixture
def preserve() -> list[SaliencyMap]:
    return [saliency(2, "forget_qa"), saliency(3, "retain_vqa")]


@pytest.fixture
def mask(forget: SaliencyMap, preserve: list[SaliencyMap]) -> Mask:
    return ratio_mask(forget, preserve, beta=1.2, address=address)


def weights(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).integers(-3, 4, {**SHAPES, SILENT: (4,)}[name]).astype(np.float32)


def controls(mask: Mask, forget: SaliencyMap, preserve: list[SaliencyMap]) -> dict[str, Mask]:
    return {
        "random": random_mask(mask, 0),
        "inverse": inverse_mask(mask, Ratio(forget, preserve)),
        "magnitude": magnitude_mask(mask, weights),
        "forget-only": forget_only_mask(mask, forget),
    }


def test_same_count_in_every_tensor(mask: Mask, forget: SaliencyMap, preserve: list[SaliencyMap]) -> None:
    assert 0 < mask.selected < mask.total
    for rule, control in controls(mask, forget, preserve).items():
        assert control.rule == rule
        assert {n: p.selected for n, p in control.parameters.items()} == {
            n: p.selected for n, p in mask.parameters.items()
        }
        assert control.modules == mask.modules
        assert control.base == mask.base
        assert control.counts == {"selected": mask.selected, "total": mask.total}
        about = {"kind": "mask", "rule": "ratio", "modules": mask.modules}
        assert control.parents[0] == {**about, "content_sha256": mask.content_sha256}
        assert control.content_sha256 != mask.content_sha256


def first_by(values: np.ndarray, count: int) -> list[int]:
    """Flat indices of the `count` smallest values, ties to the lower index."""
    return sorted(sorted(range(values.size), key=lambda i: (values.reshape(-1)[i], i))[:count])


def test_inverse_takes_the_lowest_ratios(mask: Mask, forget: SaliencyMap, preserve: list[SaliencyMap]) -> None:
    control = inverse_mask(mask, Ratio(forget, preserve))
    units = sum(p.units for p in preserve)
    for name in SHAPES:
        target = forget.saliency(name).reshape(-1).tolist()
        kept = np.asarray(sum(p.arrays[name].astype(np.float64) for p in preserve)).reshape(-1) / units
        # finite ratios, then x/0, then 0/0
        ranks = [(t / k if k else math.inf, t == k == 0, i) for i, (t, k) in enumerate(zip(target, kept, strict=True))]
        expected = sorted(i for _, _, i in sorted(ranks)[: mask.parameters[name].selected])
        assert np.flatnonzero(control[name]).tolist() == expected, name


def test_magnitude_takes_the_largest_weights(mask: Mask) -> None:
    control = magnitude_mask(mask, weights)
    for name in SHAPES:
        expected = first_by(-np.abs(weights(name)), mask.parameters[name].selected)
        assert np.flatnonzero(control[name]).tolist() == expected


def test_forget_only_takes_the_largest_forget_saliency(mask: Mask, forget: SaliencyMap) -> None:
    control = forget_only_mask(mask, forget)
    for name in SHAPES:
        expected = first_by(-forget.saliency(name), mask.parameters[name].selected)
        assert np.flatnonzero(control[name]).tolist() == expected


def test_forget_only_of_signed_sums_orders_by_square(mask: Mask, forget: SaliencyMap) -> None:
    signed = {n: np.where(np.arange(a.size).reshape(a.shape) % 2, -a, a) for n, a in forget.arrays.items()}
    control = forget_only_mask(mask, replace(forget, estimator="dataset", arrays=signed))
    assert control.content_sha256 == forget_only_mask(mask, forget).content_sha256


def test_random_depends_on_seed_and_name_alone(mask: Mask) -> None:
    name = "lm.6.mlp.up_6"
    alone = replace(mask, parameters={name: mask.parameters[name]})
    assert np.array_equal(random_mask(mask, 3)[name], random_mask(alone, 3)[name])
    assert not np.array_equal(random_mask(mask, 3)[name], random_mask(mask, 4)[name])


def test_random_is_the_same_on_every_machine(mask: Mask) -> None:
    name = "lm.1.mlp.up_1"
    sixteen = replace(mask.parameters[name], shape=(16,), bits=np.array([0b11, 0], np.uint8))
    chosen = np.flatnonzero(random_mask(replace(mask, parameters={name: sixteen}), 0)[name])
    # the two largest of 16 raw PCG64 numbers seeded by SHA-256 of "0 lm.1.mlp.up_1"
    generator = np.random.PCG64(int.from_bytes(hashlib.sha256(b"0 lm.1.mlp.up_1").digest(), "little"))
    assert chosen.tolist() == sorted(np.argsort(generator.random_raw(16))[-2:].tolist())


def test_random_is_uniform(mask: Mask) -> None:
    name = "lm.2.mlp.up_2"
    two_of_eight = replace(mask.parameters[name], shape=(8,), bits=np.array([0b11], np.uint8))
    one = replace(mask, parameters={name: two_of_eight})
    hits = sum(random_mask(one, seed)[name].astype(int) for seed in range(400))
    # each place: mean 100, standard deviation sqrt(400 * 1/4 * 3/4) = 8.7; five of these
    assert abs(hits - 100).max() < 44
    assert hits.sum() == 800


def test_refusals(mask: Mask, forget: SaliencyMap, preserve: list[SaliencyMap]) -> None:
    with pytest.raises(Mismatch, match="the mask belongs to model"):
        inverse_mask(
            mask, Ratio(*(lambda f, *p: (f, p))(*(replace(m, model_sha256="x" * 64) for m in (forget, *preserve))))
        )
    with pytest.raises(Mismatch, match="has shape"):
        magnitude_mask(mask, lambda name: np.zeros((3, 3), np.float32))
    with pytest.raises(UnusableData, match="NaN"):
        magnitude_mask(mask, lambda name: np.full(SHAPES[name], math.nan, np.float32))
    everything = ~mask
    with pytest.raises(Mismatch, match=f"selects weights of {SILENT}"):
        forget_only_mask(everything, forget)
