"""The masked update on bit patterns: what is cleared, what is put back, what is frozen."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.mask import Mask
from mmsurgery.errors import Mismatch, UnusableData
from mmsurgery.unlearn import masked, masters
from mmsurgery.unlearn.masked import MaskedUpdate, PackedBits
from mmsurgery.unlearn.masters import Selection

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
    update.restore()
    assert all(bool((p.grad == 1).all()) for p in update.trainable.values())


def test_scope_forget_masks_the_forget_gradient_and_moves_everything(
    loaded: Loaded, random_mask: Callable[..., Mask]
) -> None:
    mask = random_mask(loaded, "connector")
    update = MaskedUpdate(loaded.model, mask)
    for name, parameter in update.trainable.items():
        assert parameter is loaded.model.get_parameter(name)
        parameter.grad = torch.full_like(parameter, float("nan"))
        update.mask_forget_gradient()
        assert np.array_equal(torch.isnan(parameter.grad).numpy(), mask[name])
        original = parameter.detach().clone()
        with torch.no_grad():
            parameter += 1.0
        update.restore()
        assert bool((parameter.detach() != original).all())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scope_all_moves_numbers_of_the_selected_weights_alone(
    loaded: Loaded, random_mask: Callable[..., Mask], dtype: str
) -> None:
    """Gradients of two passes, NaN outside the mask, end as one number for each selected weight."""
    mask = random_mask(loaded, "connector")
    stored = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    loaded.model.to(getattr(torch, dtype))
    weights = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    update = MaskedUpdate(loaded.model, mask, strict=True, stored=stored.__getitem__)
    assert update.trainable.keys() == mask.in_modules()
    for name, master in update.trainable.items():
        weight, inside = loaded.model.get_parameter(name), torch.from_numpy(mask[name])
        assert (master.dtype, tuple(master.shape)) == (torch.float32, (mask.parameters[name].selected,))
        assert torch.equal(master, stored[name][inside])
        for factor in (1.0, 2.0):
            gradient = torch.arange(weight.numel(), dtype=weight.dtype).view_as(weight) % 256
            (weight * (factor * gradient).masked_fill(~inside, float("nan"))).sum().backward()
            assert weight.grad is None
        assert master.grad is not None
        assert torch.equal(master.grad, 3 * gradient[inside].float())
        with torch.no_grad():
            master += 1.0
    update.restore()
    for name, parameter in loaded.model.named_parameters():
        inside = torch.from_numpy(mask[name]) if name in update.trainable else torch.zeros_like(parameter).bool()
        moved = (stored[name] + 1.0).to(parameter.dtype)
        assert torch.equal(parameter.detach(), torch.where(inside, moved, weights[name]))


def test_a_model_leaves_memory_with_what_was_trained_of_it(tiny_llava: Path, random_mask: Callable[..., Mask]) -> None:
    """Its weights do not hold the masters that take their gradients: many runs go through one process."""
    from mmsurgery.backbones.loading import load

    loaded = load(tiny_llava)
    update = MaskedUpdate(loaded.model, random_mask(loaded, "connector"), strict=True)
    weight = loaded.model.get_parameter(next(iter(update.trainable)))
    weight.sum().backward()
    assert weight.grad is None  # taken
    seen = weakref.ref(weight)
    del loaded, update, weight
    gc.collect()
    assert seen() is None


def test_a_tensor_that_is_selected_whole_is_trained_as_it_is(loaded: Loaded, random_mask: Callable[..., Mask]) -> None:
    update = MaskedUpdate(loaded.model, random_mask(loaded, "connector", density=1.0), strict=True)
    assert all(moved is loaded.model.get_parameter(name) for name, moved in update.trainable.items())


@pytest.mark.parametrize("numel", [1, 9, 64, 1000])
def test_places_of_a_selection(numel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masters, "BLOCK", 64)
    chosen = np.random.default_rng(numel).random(numel) < 0.5
    selection = Selection(np.packbits(chosen, bitorder="little"), numel, torch.device("cpu"))
    assert np.array_equal(selection.places.numpy(), np.flatnonzero(chosen))
    values = torch.arange(numel, dtype=torch.float32)
    assert np.array_equal(selection.gather(values).numpy(), np.flatnonzero(chosen))
    selection.scatter(torch.full((int(chosen.sum()),), -1.0), values)
    assert np.array_equal(values.numpy(), np.where(chosen, -1.0, np.arange(numel)))


def test_bits_expand_alike_on_both_kinds_of_machine() -> None:
    packed = torch.arange(256, dtype=torch.uint8)
    looked_up = masked._looked_up(masked.BLOCK)(packed)
    assert looked_up.dtype == torch.int32
    assert torch.equal(masked._shifted(packed), looked_up)
    assert np.array_equal(
        looked_up.numpy() == -1, np.unpackbits(packed.numpy(), bitorder="little").reshape(256, 8).astype(bool)
    )


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
