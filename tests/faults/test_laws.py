"""Laws that hold for any samples, weights and bits. Those of the mask rule are in `tests/masks/test_rule.py`, of
packing in `tests/artifacts/test_mask_file.py`, of merging in `tests/artifacts/test_saliency_files.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmsurgery.artifacts.mask import pack
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Sample
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.saliency import measure
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.unlearn.masked import PackedBits

UNIT = 2.0**-24
"""Unit roundoff of float32."""


@pytest.fixture(scope="module")
def samples(mixed_samples: list[Sample], make_sample: Callable[..., Sample]) -> list[Sample]:
    return [*mixed_samples, make_sample("e", "Which city ?", "oslo", seed=5)]


@pytest.fixture(scope="module")
def singles(loaded_llava: Loaded, samples: list[Sample]) -> list[SaliencyMap]:
    """The map of each sample alone."""
    return [measure_saliency(loaded_llava, [sample]) for sample in samples]


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(5)), cut=st.integers(1, 5))
def test_fisher_sums_add_up_in_any_order(
    loaded_llava: Loaded, samples: list[Sample], singles: list[SaliencyMap], order: list[int], cut: int
) -> None:
    """Sums over any samples in any order are those of the samples alone, up to the rounding of so many additions."""
    taken = order[:cut]
    together = measure_saliency(loaded_llava, [samples[i] for i in taken], batch_size=1)
    assert together.units == cut
    assert set(together.arrays) == set().union(*(singles[i].arrays for i in taken))
    for name, found in together.arrays.items():
        exact = sum(singles[i].arrays[name].astype(np.float64) for i in taken if name in singles[i].arrays)
        assert np.all(np.abs(found - exact) <= (cut + 1) * UNIT * exact + 1e-45), name


@pytest.mark.parametrize("scale", [256.0, 4096.0])
def test_the_loss_scale_of_float16_changes_no_bit_that_counts(
    tiny_llava: Path, samples: list[Sample], scale: float
) -> None:
    """Case 40: it is taken out before maps meet; what differs was lost at the end of float16's range."""
    loaded = load(tiny_llava, torch.float16)

    def measured(part: list[Sample], scale: float = measure.LOSS_SCALE) -> SaliencyMap:
        with mock.patch.object(measure, "LOSS_SCALE", scale):
            found = measure_saliency(loaded, part)
        assert found.provenance["loss_scale"] == scale
        return found

    preserve = measured(samples[2:])
    one, other = (ratio_mask(forget, preserve) for forget in (measured(samples[:2]), measured(samples[:2], scale)))
    assert (one ^ other).selected <= 0.001 * one.total


patterns = arrays.arrays(np.uint32, st.integers(0, 70), elements=st.integers(0, 2**32 - 1))


@given(patterns, st.data())
def test_nothing_selected_is_the_identity(original: np.ndarray, data: st.DataObject) -> None:
    """An all-false mask puts back every weight bit by bit, whatever it became, and clears every gradient; an all-true
    one does nothing. (`apply` refuses the former: `campaigns/numbers.py`.)"""
    moved = data.draw(arrays.arrays(np.uint32, original.size, elements=st.integers(0, 2**32 - 1)))
    for selected in (False, True):
        bits = PackedBits(torch.from_numpy(pack(np.full(original.size, selected))), original.size)
        weights = torch.from_numpy(moved.copy()).view(torch.float32)
        bits.restore_outside(weights, torch.from_numpy(original.copy()).view(torch.float32))
        assert np.array_equal(weights.view(torch.int32).numpy().view(np.uint32), moved if selected else original)
        bits.clear_outside(weights)
        kept = moved if selected else np.zeros_like(moved)
        assert np.array_equal(weights.view(torch.int32).numpy().view(np.uint32), kept)
