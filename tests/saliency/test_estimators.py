"""Every estimator against its definition, computed one sample and one plain backward pass at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones import loading
from mmsurgery.backbones.loading import Loaded
from mmsurgery.data.samples import Sample
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.saliency.uses import Owners

import autograd_fisher  # isort: skip

Alone = Callable[[Loaded, Sequence[Sample]], list[dict[str, torch.Tensor]]]

KEY_BIASES = {f"model.vision_tower.encoder.layers.{layer}.self_attn.k_proj.bias" for layer in (0, 1)}
"""Of the layers below the one that the projector reads: their true gradient is zero."""


def worst(measured: SaliencyMap, expected: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of a tensor; the same tensors must be there."""
    assert set(measured.arrays) == set(expected)
    compared = expected.keys() - set(measured.provenance["zero_gradient"])
    return max(autograd_fisher.relative_difference(measured.arrays[name], expected[name]) for name in compared)


@pytest.fixture(params=["small", "large"])
def tensor_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of micro models are done for all samples at once, those of large models one after the other."""
    if request.param == "large":
        monkeypatch.setattr("mmsurgery.saliency.uses.SMALL", 0)


@pytest.mark.usefixtures("float64_norms", "tensor_size")
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_sample_is_exact_at_any_batch_size(
    llava64: Loaded, seven_samples: list[Sample], one_by_one: Alone, batch_size: int
) -> None:
    measured = measure_saliency(llava64, seven_samples, batch_size=batch_size)
    expected = autograd_fisher.sum_over_samples(llava64.model, one_by_one(llava64, seven_samples))
    assert worst(measured, expected) <= 1e-10
    assert (measured.units, measured.batch_size, measured.provenance["path"]) == (7, None, "hooks")
    assert {array.dtype.name for array in measured.arrays.values()} == {"float64"}


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_sample_through_stock_transformers(
    tiny_llava: Path, seven_samples: list[Sample], one_by_one: Alone, dtype: torch.dtype, bar: float
) -> None:
    loaded = loading.load(tiny_llava, dtype)
    measured = measure_saliency(loaded, seven_samples, batch_size=3)
    assert worst(measured, autograd_fisher.sum_over_samples(loaded.model, one_by_one(loaded, seven_samples))) <= bar


@pytest.fixture
def hooked_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsurgery.saliency.blocks.LARGE", 0.0)


@pytest.mark.usefixtures("float64_norms", "tensor_size")
@pytest.mark.parametrize(("large", "path"), [(0.0, "hooks"), (1.0, "batches")])
def test_batch_squares_the_gradient_of_each_batch_mean(
    llava64: Loaded,
    seven_samples: list[Sample],
    one_by_one: Alone,
    monkeypatch: pytest.MonkeyPatch,
    large: float,
    path: str,
) -> None:
    monkeypatch.setattr("mmsurgery.saliency.blocks.LARGE", large)
    alone = one_by_one(llava64, seven_samples)
    for size in (3, 4):
        measured = measure_saliency(llava64, seven_samples, estimator="batch", batch_size=size)
        assert worst(measured, autograd_fisher.sum_over_batches(llava64.model, alone, size)) <= 1e-10
        assert (measured.units, measured.batch_size) == (math.ceil(7 / size), size)
        assert measured.provenance["path"] == path


@pytest.mark.usefixtures("float64_norms")
def test_dataset_sums_signed_gradients(llava64: Loaded, seven_samples: list[Sample], one_by_one: Alone) -> None:
    expected = autograd_fisher.signed_sum(llava64.model, one_by_one(llava64, seven_samples))
    for size in (2, 7):
        measured = measure_saliency(llava64, seven_samples, estimator="dataset", batch_size=size)
        assert worst(measured, expected) <= 1e-10
        assert (measured.units, measured.batch_size) == (7, None)
    name = "lm_head.weight"
    mean = expected[name].numpy() / 7
    assert abs(measured.saliency(name) - mean**2).max() <= 1e-10 * (mean**2).max()


@pytest.mark.usefixtures("float64_norms", "hooked_batches")
def test_tied_head_sums_both_uses_before_squaring(
    llava64: Loaded, seven_samples: list[Sample], one_by_one: Alone
) -> None:
    model = llava64.model
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    family = llava64.backbone
    tied = replace(llava64, addresses=loading.addresses(family, model), tied=loading.tied(model))
    measured = measure_saliency(tied, seven_samples, batch_size=4)
    assert measured.tied == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    assert "lm_head.weight" not in measured.names
    assert measured.provenance["path"] == "hooks"
    alone = one_by_one(tied, seven_samples)
    assert worst(measured, autograd_fisher.sum_over_samples(model, alone)) <= 1e-10
    batches = measure_saliency(tied, seven_samples, estimator="batch", batch_size=4)
    assert batches.provenance["path"] == "hooks"
    assert worst(batches, autograd_fisher.sum_over_batches(model, alone, 4)) <= 1e-10


@pytest.mark.usefixtures("float64_norms")
def test_a_module_called_twice_sums_its_calls_before_squaring(
    llava64: Loaded, mixed_samples: list[Sample], one_by_one: Alone
) -> None:
    projector = llava64.model.model.multi_modal_projector
    plain = projector.forward
    projector.forward = lambda features: plain(features) + 0.5 * plain(features.flip(1))
    measured = measure_saliency(llava64, mixed_samples, batch_size=4)
    assert measured.provenance["path"] == "hooks"
    expected = autograd_fisher.sum_over_samples(llava64.model, one_by_one(llava64, mixed_samples))
    assert worst(measured, expected) <= 1e-10


@pytest.mark.usefixtures("float64_norms")
def test_several_pictures_per_sample(
    llava64: Loaded, mixed_samples: list[Sample], one_by_one: Alone, changed_backbone: Callable[..., Loaded]
) -> None:
    """Sample `a` also shows the picture of `c`; its loss sees both, so its gradient is of their sum."""
    plain, other = llava64.backbone.collate, mixed_samples[2]

    def collate(processor: Any, samples: Sequence[Sample], **options: Any) -> dict[str, torch.Tensor]:
        rows, pictures = [], []
        for sample in samples:
            batch = plain(processor, [sample])
            if sample.id == "a":
                second = plain(processor, [other])
                both = {key: torch.cat([second[key][0], batch[key][0]]) for key in ("input_ids", "labels")}
                rows.append(both)
                pictures += [second["pixel_values"], batch["pixel_values"]]
            else:
                rows.append({key: batch[key][0] for key in ("input_ids", "labels")})
                pictures += [batch["pixel_values"]] if "pixel_values" in batch else []
        padded = {
            key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=value)
            for key, value in (("input_ids", 0), ("labels", -100))
        }
        padded["attention_mask"] = (padded["input_ids"] != 0).long()
        return {**padded, **({"pixel_values": torch.cat(pictures)} if pictures else {})}

    loaded = changed_backbone(llava64, collate=collate)
    measured = measure_saliency(loaded, mixed_samples, batch_size=4)
    assert measured.provenance["path"] == "hooks"
    expected = autograd_fisher.sum_over_samples(llava64.model, one_by_one(loaded, mixed_samples))
    assert worst(measured, expected) <= 1e-10


@pytest.mark.usefixtures("float64_norms")
def test_a_padding_row_gets_nothing_even_where_it_is_a_word(
    llava64: Loaded, mixed_samples: list[Sample], one_by_one: Alone
) -> None:
    """As where the end token is also the padding token: `torch.nn.Embedding` leaves the row out."""
    word = llava64.processor.tokenizer.convert_tokens_to_ids("city")
    llava64.model.model.language_model.embed_tokens.padding_idx = word
    measured = measure_saliency(llava64, mixed_samples)
    assert not measured.sum_of_squares("model.language_model.embed_tokens.weight")[word].any()
    assert measured.sum_of_squares("lm_head.weight")[word].any()
    expected = autograd_fisher.sum_over_samples(llava64.model, one_by_one(llava64, mixed_samples))
    assert worst(measured, expected) <= 1e-10


def test_rows_of_a_sample_need_not_be_neighbours() -> None:
    owners = Owners(torch.tensor([2, 0, 2, 3]), samples=4)
    values = torch.tensor([[[1.0], [10.0]], [[2.0], [20.0]], [[3.0], [30.0]], [[4.0], [40.0]]])  # [R, T, 1]
    assert owners.present == [0, 2, 3]
    assert owners.take(values, 2).flatten().tolist() == [1.0, 10.0, 3.0, 30.0]
    assert owners.per_sample(values[:, 0]).flatten().tolist() == [2.0, 0.0, 4.0, 4.0]


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_parameters_without_gradient_are_those_the_loss_does_not_reach(
    loaded_llava: Loaded, mixed_samples: list[Sample], one_by_one: Alone, estimator: str
) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in loaded_llava.model.named_parameters()}
    for samples in (mixed_samples, mixed_samples[1:2]):
        measured = measure_saliency(loaded_llava, samples, estimator=estimator)
        reached = autograd_fisher.signed_sum(loaded_llava.model, one_by_one(loaded_llava, samples)).keys()
        assert measured.no_gradient == {name: shapes[name] for name in shapes.keys() - reached}
    text_only = {loaded_llava.addresses[name].group for name in measured.no_gradient}
    assert text_only == {"vision", "connector"}


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_key_biases_are_exactly_zero_and_listed(
    loaded_llava: Loaded, mixed_samples: list[Sample], estimator: str
) -> None:
    measured = measure_saliency(loaded_llava, mixed_samples, estimator=estimator)
    assert set(measured.provenance["zero_gradient"]) == KEY_BIASES
    assert all(not measured.arrays[name].any() for name in KEY_BIASES)


def test_supervised_tokens_are_counted(loaded_llava: Loaded, mixed_samples: list[Sample]) -> None:
    """Word tokens of the answers, and one end token each."""
    expected = sum(len(re.findall(r"\S+", sample.answer)) + 1 for sample in mixed_samples)
    assert measure_saliency(loaded_llava, mixed_samples).provenance["supervised_tokens"] == expected


@pytest.mark.usefixtures("tensor_size")
@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_are_summed_in_float32(
    tiny_llava: Path, loaded_llava: Loaded, mixed_samples: list[Sample], estimator: str, dtype: torch.dtype
) -> None:
    measured = measure_saliency(loading.load(tiny_llava, dtype), mixed_samples, estimator=estimator)
    reference = measure_saliency(loaded_llava, mixed_samples, estimator=estimator)
    assert measured.provenance["loss_scale"] == (1024 if dtype is torch.float16 else 1)
    assert {array.dtype.name for array in measured.arrays.values()} == {"float32"}
    # a bfloat16 has 8 significant bits: a few of their steps over a dozen layers
    assert worst(measured, {name: torch.as_tensor(a) for name, a in reference.arrays.items()}) < 0.1


def test_small_gradients_of_float16_models_are_not_lost(
    tiny_llava: Path, mixed_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With head and norm this small the gradients before them are about 1e-7, at the end of float16's range."""

    def measured(dtype: torch.dtype) -> SaliencyMap:
        loaded = loading.load(tiny_llava, dtype)
        loaded.model.lm_head.weight.data.mul_(2**-6)
        loaded.model.model.language_model.norm.weight.data.mul_(2**-11)
        return measure_saliency(loaded, mixed_samples)

    name = "model.language_model.layers.0.mlp.up_proj.weight"
    exact = torch.as_tensor(measured(torch.float32).arrays[name])
    assert 1e-8 < float(exact.max()) ** 0.5 < 5e-6
    assert autograd_fisher.relative_difference(measured(torch.float16).arrays[name], exact) < 0.05
    monkeypatch.setattr("mmsurgery.saliency.measure.LOSS_SCALE", 1.0)
    assert autograd_fisher.relative_difference(measured(torch.float16).arrays[name], exact) > 0.2
