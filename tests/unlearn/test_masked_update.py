"""The masked update on bit patterns: what is cleared, what is put back, what is frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.mask import Mask
from mmsurgery.errors import Mismatch, UnusableData
from mmsurgery.unlearn import masked
from mmsurgery.unlearn.masked import MaskedUpdate, PackedBits

if TYPE_CHECKING:
    from pathlib import Path

    from mmsurgery.backbones.loading import Loaded


@pytest.fixture
def loaded(tiny_llava: Path) -> Loaded:
    from mmsurgery.backbones.loading import load

    return load(tiny_llava)


def packed(chosen: np.ndarray) -> PackedBits:
    return PackedBits(torch.from_numpy(np.packbits(chosen, bitorder="little")), chosen.size)


def patterns(values: torch.Tensor) -> torch.Tensor:
    return values.detach().reshape(-1).view(torch.int32)


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 64, 100, 1000])
def test_cleared_values_are_positive_zero_whatever_they_were(numel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "BLOCK", 64)
    chosen = np.random.default_rng(numel).random(numel) < 0.5
    values = torch.tensor([-1.0, float("nan"), float("inf"), 1e-42]).repeat(numel // 4 + 1)[:numel]
    before = values.clone()
    packed(chosen).clear_outside(values)
    expected = np.where(chosen, patterns(before).numpy(), 0)  # bits, so -0.0 would be seen
    assert np.array_equal(patterns(values).numpy(), expected)


@pytest.mark.parametrize("numel", [1, 9, 64, 100])
def test_restored_values_have_the_original_bits(numel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "BLOCK", 16)
    chosen = np.random.default_rng(numel).random(numel) < 0.5
    original, moved = torch.randn(numel), torch.randn(numel)
    moved[::3], original[0] = float("nan"), -0.0
    before = moved.clone()
    packed(chosen).restore_outside(moved, original)
    assert np.array_equal(patterns(moved).numpy(), np.where(chosen, patterns(before), patterns(original)))
    assert torch.equal(patterns(original)[:1], patterns(torch.tensor([-0.0])))


def test_modules_not_named_are_frozen(loaded: Loaded, random_mask: Callable[..., Mask]) -> None:
    mask = random_mask(loaded, "lm.0,connector")
    update = MaskedUpdate(loaded.model, mask)
    addresses = loaded.addresses
    assert update.trainable
    for name, parameter in loaded.model.named_parameters():
        named = addresses[name].group == "connector" or addresses[name].layer_key == "lm.0"
        assert parameter.requires_grad == named == (name in update.trainable)


def test_without_a_mask_everything_is_trained(loaded: Loaded) -> None:
    update = MaskedUpdate(loaded.model, None)
    assert update.trainable.keys() == dict(loaded.model.named_parameters()).keys()
    for parameter in update.trainable.values():
        parameter.grad = torch.ones_like(parameter)
    update.mask_forget_gradient()
    update.mask_gradient()
    assert all(bool((p.grad == 1).all()) for p in update.trainable.values())


def test_scopes_differ_in_what_happens_to_the_whole_gradient(loaded: Loaded, random_mask: Callable[..., Mask]) -> None:
    mask = random_mask(loaded, "connector")
    for strict in (False, True):
        update = MaskedUpdate(loaded.model, mask, strict=strict)
        for name, parameter in update.trainable.items():
            parameter.grad = torch.full_like(parameter, float("nan"))
            update.mask_forget_gradient()
            if strict:  # the whole gradient is masked, in one go
                update.mask_gradient()
            assert np.array_equal(torch.isnan(parameter.grad).numpy(), mask[name])
            parameter.grad.fill_(1.0)
            update.mask_gradient()
            assert np.array_equal(parameter.grad.bool().numpy(), mask[name] if strict else np.ones_like(mask[name]))
            original = parameter.detach().clone()
            with torch.no_grad():
                parameter += 1.0
            update.restore()
            moved = (parameter.detach() != original).numpy()
            assert np.array_equal(moved, mask[name] if strict else np.ones_like(mask[name]))
            with torch.no_grad():
                parameter.copy_(original)


def test_a_mask_of_another_model_is_refused_naming_three_differences(
    loaded: Loaded, random_mask: Callable[..., Mask]
) -> None:
    mask = random_mask(loaded, "lm")
    names = mask.names
    parameters = {name: mask.parameters[name] for name in names[2:]}
    parameters[names[5]] = replace(parameters[names[5]], shape=(3, 5))
    with pytest.raises(Mismatch, match="in 3 parameters") as caught:
        MaskedUpdate(loaded.model, replace(mask, parameters=parameters))
    assert all(name in str(caught.value) for name in (names[0], names[1], names[5]))
    assert "mask [3, 5]" in str(caught.value)


def test_a_mask_that_selects_nothing_in_its_modules_is_refused(
    loaded: Loaded, random_mask: Callable[..., Mask]
) -> None:
    with pytest.raises(UnusableData, match=r"selects 0 of the [\d,]+ weights of lm"):
        MaskedUpdate(loaded.model, random_mask(loaded, "lm", density=0.0))
    with pytest.raises(UnusableData, match="selects 0"):
        MaskedUpdate(loaded.model, replace(random_mask(loaded, "lm"), modules="connector"))
