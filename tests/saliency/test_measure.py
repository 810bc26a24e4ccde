"""What `measure_saliency` does beside the numbers: falling back, refusing, leaving the model as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import Loaded
from mmsurgery.data.samples import Sample
from mmsurgery.errors import Mismatch, UnusableData, UsageError
from mmsurgery.saliency.measure import measure_saliency

import autograd_fisher  # isort: skip

Alone = Callable[[Loaded, Sequence[Sample]], list[dict[str, torch.Tensor]]]


class Gated(torch.nn.Module):
    """A parameter held in a way that no hook knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((1,), 1.5, dtype=torch.float64))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(features) * self.scale


class Doubled(torch.nn.Linear):
    """A subclass that computes something else."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(features)


class ShiftedNorm(torch.nn.Module):
    """(1 + weight) * xhat, as Gemma's; at weight 1 it looks like 2 * weight * xhat."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size, dtype=torch.float64))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return (1 + self.weight) * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)


def own_parameter(model: Any) -> None:
    model.model.multi_modal_projector.act = Gated()


def subclass(model: Any) -> None:
    projector = model.model.multi_modal_projector
    doubled = Doubled(projector.linear_2.in_features, projector.linear_2.out_features, dtype=torch.float64)
    doubled.load_state_dict(projector.linear_2.state_dict())
    projector.linear_2 = doubled


def replaced_forward(model: Any) -> None:
    head = model.lm_head
    head.forward = lambda states: torch.nn.functional.linear(states, head.weight) * 2


def shifted_norm(model: Any) -> None:
    model.model.language_model.norm = ShiftedNorm(32)


def weight_used_elsewhere(model: Any) -> None:
    projector = model.model.multi_modal_projector
    first, plain = projector.linear_1, projector.forward
    projector.forward = lambda features: (
        plain(features)
        + torch.nn.functional.linear(torch.nn.functional.linear(features, first.weight), projector.linear_2.weight)
    )


def rows_not_samples(model: Any) -> None:
    """A block that runs on `[B * T, H]`, as experts do."""
    block = model.model.language_model.layers[0].mlp
    plain = block.forward
    block.forward = lambda states: plain(states.flatten(0, 1)).view_as(states)


CHANGES = {
    own_parameter: "scale",
    subclass: "Doubled",
    replaced_forward: "lm_head",
    shifted_norm: "ShiftedNorm",
    weight_used_elsewhere: "outside",
    rows_not_samples: "rows",
}


@pytest.mark.usefixtures("float64_norms")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_hooks_do_not_understand_is_measured_sample_by_sample(
    llava64: Loaded,
    seven_samples: list[Sample],
    one_by_one: Alone,
    watcher: Callable[..., Any],
    change: Callable[[Any], None],
) -> None:
    """Text first: the odd module of the connector is met in the second batch, after sums were begun."""
    samples = [seven_samples[1], seven_samples[4], *seven_samples]
    change(llava64.model)
    expected = autograd_fisher.sum_over_samples(llava64.model, one_by_one(llava64, samples))
    progress = watcher()
    measured = measure_saliency(llava64, samples, batch_size=2, progress=progress)
    assert measured.provenance["path"] == "batch-1"
    assert len(progress.notes) == 1
    assert CHANGES[change] in progress.notes[0]
    assert set(measured.arrays) == set(expected)
    for name in expected.keys() - set(measured.provenance["zero_gradient"]):
        assert autograd_fisher.relative_difference(measured.arrays[name], expected[name]) <= 1e-10, name


@pytest.mark.usefixtures("float64_norms")
@pytest.mark.parametrize("change", [own_parameter, subclass, shifted_norm], ids=lambda change: change.__name__)
def test_batches_that_hooks_do_not_understand_go_by_plain_backward_passes(
    llava64: Loaded,
    seven_samples: list[Sample],
    one_by_one: Alone,
    watcher: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], None],
) -> None:
    monkeypatch.setattr("mmsurgery.saliency.blocks.LARGE", 0.0)
    change(llava64.model)
    expected = autograd_fisher.sum_over_batches(llava64.model, one_by_one(llava64, seven_samples), 3)
    progress = watcher()
    measured = measure_saliency(llava64, seven_samples, estimator="batch", batch_size=3, progress=progress)
    assert measured.provenance["path"] == "batches"
    (note,) = progress.notes
    assert note.startswith("with whole gradients, which takes more memory: ")
    assert CHANGES[change] in note
    for name in expected.keys() - set(measured.provenance["zero_gradient"]):
        assert autograd_fisher.relative_difference(measured.arrays[name], expected[name]) <= 1e-10, name


def test_inputs_changed_in_place_are_refused_as_autograd_does(llava64: Loaded, mixed_samples: list[Sample]) -> None:
    projector = llava64.model.model.multi_modal_projector

    def forward(features: torch.Tensor) -> torch.Tensor:
        features = features.clone()
        hidden = torch.nn.functional.gelu(projector.linear_1(features))
        features.mul_(3)
        return projector.linear_2(hidden)

    projector.forward = forward
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        measure_saliency(llava64, mixed_samples)


def state(model: Any) -> list[Any]:
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    parameters = [
        (parameter.requires_grad, parameter.grad is not None, len(parameter._post_accumulate_grad_hooks or ()))
        for parameter in model.parameters()
    ]
    return [modules, parameters, torch.are_deterministic_algorithms_enabled()]


@pytest.mark.parametrize("estimator", ["sample", "batch"])
@pytest.mark.parametrize("die_after", [None, 4])
def test_the_model_is_left_as_it_was(
    llava64: Loaded,
    seven_samples: list[Sample],
    watcher: Callable[..., Any],
    interrupted: type[Exception],
    estimator: str,
    die_after: int | None,
) -> None:
    model = llava64.model
    model(**llava64.backbone.collate(llava64.processor, seven_samples))  # transformers adds hooks of its own at first
    model.model.language_model.train()
    model.lm_head.weight.requires_grad_(False)
    gradient = torch.ones_like(model.model.multi_modal_projector.linear_1.bias)
    model.model.multi_modal_projector.linear_1.bias.grad = gradient
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    before = state(model)
    try:
        measure_saliency(llava64, seven_samples, estimator=estimator, progress=watcher(die_after))
        assert die_after is None
    except interrupted:
        assert die_after == 4
    assert state(model) == before
    assert model.model.multi_modal_projector.linear_1.bias.grad is gradient
    assert bool((gradient == 1).all())
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())


def test_dropout_is_off(llava64: Loaded, mixed_samples: list[Sample]) -> None:
    reference = measure_saliency(llava64, mixed_samples)
    for layer in llava64.model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    llava64.model.train()
    assert same(measure_saliency(llava64, mixed_samples), reference)


def same(one: SaliencyMap, other: SaliencyMap) -> bool:
    return one.arrays.keys() == other.arrays.keys() and all(
        np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays
    )


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_the_same_call_twice_gives_the_same_bits(
    loaded_llava: Loaded, seven_samples: list[Sample], estimator: str
) -> None:
    first, second = (measure_saliency(loaded_llava, seven_samples, estimator=estimator) for _ in range(2))
    assert same(first, second)
    assert first.provenance == second.provenance


def test_the_map_says_where_it_comes_from(loaded_llava: Loaded, mixed_samples: list[Sample]) -> None:
    measured = measure_saliency(loaded_llava, mixed_samples, part="forget_vqa", data_sha256="d" * 64)
    assert (measured.part, measured.model_type) == ("forget_vqa", "llava")
    assert (measured.model_sha256, measured.data_sha256) == (loaded_llava.model_sha256, "d" * 64)
    template = loaded_llava.backbone.template_digest(loaded_llava.processor)
    assert measured.template_sha256 == template
    assert measured.provenance["settings"]["threads"] == torch.get_num_threads()
    other = measure_saliency(loaded_llava, mixed_samples[::-1])
    assert other.data_sha256 != measure_saliency(loaded_llava, mixed_samples).data_sha256


def test_impossible_arguments_are_refused(loaded_llava: Loaded, mixed_samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match="estimator 'fisher'"):
        measure_saliency(loaded_llava, mixed_samples, estimator="fisher")
    with pytest.raises(UsageError, match="batch size 0"):
        measure_saliency(loaded_llava, mixed_samples, batch_size=0)
    with pytest.raises(UnusableData, match="no samples to measure in retain_qa"):
        measure_saliency(loaded_llava, [], part="retain_qa")


def test_a_parameter_that_is_not_in_memory_is_refused(llava64: Loaded, mixed_samples: list[Sample]) -> None:
    head = llava64.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.to("meta"))
    with pytest.raises(UnusableData, match=r"lm_head\.weight is not in memory"):
        measure_saliency(llava64, mixed_samples)


def test_a_sample_without_labels_is_named(
    llava64: Loaded, mixed_samples: list[Sample], changed_backbone: Callable[..., Loaded]
) -> None:
    plain = llava64.backbone.collate

    def collate(processor: Any, samples: Sequence[Sample], **options: Any) -> dict[str, torch.Tensor]:
        batch = plain(processor, samples, **options)
        for row, sample in enumerate(samples):
            if sample.id == "c":
                batch["labels"][row] = -100
        return batch

    with pytest.raises(UnusableData, match="sample c has no answer token") as caught:
        measure_saliency(changed_backbone(llava64, collate=collate), mixed_samples)
    assert caught.value.code == 5


def test_a_nan_weight_is_named_with_the_first_sample_it_spoils(
    llava64: Loaded, mixed_samples: list[Sample], watcher: Callable[..., Any]
) -> None:
    """The text samples before `c` never see the projector. Looking for the weight is no use of it by the model."""
    name = "model.multi_modal_projector.linear_2.weight"
    llava64.model.get_parameter(name).data[3, 4] = math.nan
    samples = [mixed_samples[1], mixed_samples[2], mixed_samples[0]]
    with pytest.raises(UnusableData, match=rf"loss of sample c is nan: {name} ") as caught:
        measure_saliency(llava64, samples, batch_size=2, progress=(progress := watcher()))
    assert caught.value.code == 5
    assert progress.notes == []


class Poison(torch.autograd.Function):
    """The identity, whose gradient is infinite for rows that start with `marker`."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
        ctx.rows = torch.isclose(features[:, 0, 0], marker)
        return features.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient = gradients[0].clone()
        gradient[ctx.rows] = math.inf
        return gradient, None


@pytest.mark.parametrize(("estimator", "blamed"), [("sample", "c"), ("dataset", "c"), ("batch", "c, d")])
def test_a_gradient_that_is_not_finite_is_named_with_its_sample(
    llava64: Loaded, mixed_samples: list[Sample], estimator: str, blamed: str
) -> None:
    projector = llava64.model.model.multi_modal_projector
    seen: list[torch.Tensor] = []
    handle = projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 0, 0].detach()))
    batch = llava64.backbone.collate(llava64.processor, [mixed_samples[2]])
    llava64.model(**batch)
    handle.remove()
    marker = seen[0]
    projector.register_forward_pre_hook(lambda _, inputs: (Poison.apply(inputs[0], marker),))
    vision = r"model\.vision_tower\.encoder\.layers\.1\.mlp\.fc2\.(weight|bias)"
    with pytest.raises(UnusableData, match=rf"gradient of {vision} is not finite at sample {blamed}") as caught:
        measure_saliency(llava64, mixed_samples, estimator=estimator, batch_size=2)
    assert caught.value.code == 5


@pytest.mark.parametrize("samples", ["forget_vqa", 3, ["forget_vqa"], None])
def test_samples_of_another_type(loaded_llava: Loaded, samples: Any) -> None:
    with pytest.raises(TypeError, match=r"samples (is|holds) a .*, should (be|hold)"):
        measure_saliency(loaded_llava, samples)


def test_a_model_of_another_type(loaded_llava: Loaded, mixed_samples: list[Sample]) -> None:
    for other in (loaded_llava.model, str(loaded_llava.path)):
        with pytest.raises(TypeError, match="what load_model returns"):
            measure_saliency(other, mixed_samples)


def test_a_model_changed_in_memory_is_another_model(llava64: Loaded, mixed_samples: list[Sample]) -> None:
    before = measure_saliency(llava64, mixed_samples[:1])
    assert before.model_sha256 == llava64.model_sha256
    with torch.no_grad():
        llava64.model.lm_head.weight.mul_(1.5)
    after = measure_saliency(llava64, mixed_samples[:1])
    assert after.model_sha256 != before.model_sha256
    with pytest.raises(Mismatch, match="model_sha256"):
        after.same_kind(before)
