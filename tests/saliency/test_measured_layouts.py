"""However memory is used, the map is the same; and it is used as the layout says."""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.checkpointing import activations_checkpointed
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Sample
from mmsurgery.errors import UsageError
from mmsurgery.memory import PLACES, Layout, Store
from mmsurgery.methods.step import Answers
from mmsurgery.saliency import sums as sums_module
from mmsurgery.saliency import tap
from mmsurgery.saliency import uses as uses_module
from mmsurgery.saliency.exact import Hooked
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.saliency.modules import NotUnderstood
from mmsurgery.saliency.sums import Sums

OTHERS = [Layout(checkpointing=twice, state=place) for place in PLACES for twice in (False, True)][1:]


@pytest.fixture(params=["llava", "qwen2_vl"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    """A tiny model of either family; one of its own."""
    return load(request.getfixturevalue(f"tiny_{request.param}"))


def same(found: SaliencyMap, expected: SaliencyMap) -> None:
    assert found.no_gradient == expected.no_gradient
    assert set(found.arrays) == set(expected.arrays)
    for name, array in expected.arrays.items():
        assert np.array_equal(found.arrays[name], array), name


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_every_layout_gives_the_same_bits(loaded: Loaded, seven_samples: list[Sample], estimator: str) -> None:
    options: dict[str, Any] = {"estimator": estimator, "batch_size": 4}
    expected = measure_saliency(loaded, seven_samples, **options)
    assert "layout" not in expected.provenance
    for layout in OTHERS:
        found = measure_saliency(loaded, seven_samples, layout=layout, **options)
        same(found, expected)
        assert found.provenance == {**expected.provenance, "layout": str(layout)}


@pytest.mark.parametrize("estimator", ["sample", "batch"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_computed_twice(
    loaded: Loaded, mixed_samples: list[Sample], estimator: str, checkpointing: bool
) -> None:
    """Inside layers, of language model and vision encoder; the model is left as it was found."""
    inside = [m for n, m in loaded.model.named_modules() if n.endswith(("mlp.down_proj", "mlp.fc1"))]
    runs = dict.fromkeys(inside, 0)
    for module in inside:
        module.register_forward_hook(lambda module, *_: runs.__setitem__(module, runs[module] + 1))
    places = [module for module in loaded.model.modules() if isinstance(module, torch.nn.Embedding)]
    measure_saliency(loaded, mixed_samples, estimator=estimator, layout=Layout(checkpointing=checkpointing))
    assert set(runs.values()) - {0} <= {1, 2}
    assert (2 in runs.values()) == checkpointing
    assert not any(module.training for module in loaded.model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in loaded.model.modules())
    assert not any(module._forward_hooks for module in places)


def test_a_tap_keeps_its_inputs_as_autograd_does() -> None:
    """No reference of its own: what autograd's hooks for saved tensors take away is gone."""
    packed: list[torch.Size] = []
    seen: list[tuple[Any, ...]] = []
    numbers = np.ones((3, 2))
    gone = weakref.ref(numbers)

    def pack(value: torch.Tensor) -> torch.Size:
        packed.append(value.shape)
        return value.shape

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda shape: torch.full(shape, 5.0)):
        inputs = (torch.from_numpy(numbers), "mode")
        output = tap.tapped(torch.zeros(3), inputs, lambda *found: seen.append(found), "layer")
    del numbers, inputs
    assert gone() is None
    assert packed == [(3, 2)]
    (2 * output).sum().backward()
    ((found, mode), gradient), *others = seen
    assert (found.tolist(), mode, gradient.tolist(), others) == ([[5.0] * 2] * 3, "mode", [2.0] * 3, [])


def test_a_tap_is_the_identity_and_its_output_may_be_changed_in_place() -> None:
    seen: list[torch.Tensor] = []
    first = torch.ones(3, requires_grad=True)
    output = tap.tapped(first * 2, (torch.ones(3),), lambda _, gradient: seen.append(gradient), "layer")
    output *= 5
    (output * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert output.tolist() == [10.0] * 3
    assert [gradient.tolist() for gradient in seen] == [[5.0, 10.0, 15.0]]
    assert first.grad is not None
    assert first.grad.tolist() == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_sums_beside_a_gpu(
    llava64: Loaded, seven_samples: list[Sample], monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    """Brought to main memory piece by piece, here from the CPU to itself."""
    expected = measure_saliency(llava64, seven_samples, estimator=estimator, batch_size=3)
    brought: list[int] = []

    class Event:
        def synchronize(self) -> None:
            brought.append(1)

    class Stream:
        def record_event(self) -> Event:
            return Event()

    plain = Sums.__init__

    def prepared(self: Sums, *arguments: Any) -> None:
        plain(self, *arguments)
        self._pinned = [torch.full((7,), np.nan, dtype=torch.float64) for _ in range(2)]

    monkeypatch.setattr(Sums, "__init__", prepared)
    monkeypatch.setattr(uses_module, "SMALL", 0)
    monkeypatch.setattr(sums_module, "PIECE", 7)
    monkeypatch.setattr(sums_module, "_elsewhere", lambda total, parameter: True)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    found = measure_saliency(llava64, seven_samples, estimator=estimator, batch_size=3, layout=Layout(state="host"))
    assert len(brought) > 1000
    assert set(found.arrays) == set(expected.arrays)
    for name, array in expected.arrays.items():
        assert np.abs(found.arrays[name] - array).max() <= 1e-12 * np.abs(array).max(), name


def test_sums_in_files_lie_beside_the_snapshots(
    loaded_llava: Loaded, mixed_samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, Path | None]] = []
    plain = Store.__init__

    def noted(self: Store, place: str = "device", folder: Path | None = None) -> None:
        plain(self, place, folder)
        made.append((place, folder))

    monkeypatch.setattr(Store, "__init__", noted)
    layout = Layout(state="disk")
    measure_saliency(loaded_llava, mixed_samples, layout=layout, resume_folder=tmp_path / "saliency" / ".resume-x")
    assert set(made) == {("disk", tmp_path / "saliency")}
    assert not [path for path in (tmp_path / "saliency").rglob("*") if path.is_file()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_inputs_changed_in_place_are_noticed(
    loaded_llava: Loaded, mixed_samples: list[Sample], monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """After the module was called and before the gradient is there, which would meet other numbers."""
    model, mlp = loaded_llava.model, loaded_llava.model.model.language_model.layers[0].mlp

    def forward(states: torch.Tensor) -> torch.Tensor:
        states = states.clone()
        product = mlp.act_fn(mlp.gate_proj(states)) * mlp.up_proj(states)
        with torch.no_grad():
            states.mul_(2)
        output: torch.Tensor = mlp.down_proj(product)
        return output

    monkeypatch.setattr(mlp, "forward", forward)
    batch = loaded_llava.backbone.collate(loaded_llava.processor, mixed_samples)
    sums = Sums({parameter: name for name, parameter in model.named_parameters()})
    twice = activations_checkpointed(model) if checkpointing else contextlib.nullcontext()
    with twice, Hooked(loaded_llava, sums) as method, pytest.raises(NotUnderstood, match="changed in place"):
        method.step(batch, lambda: Answers.of(model, batch).nll(), 1.0)


def test_a_model_without_such_layers_says_so(
    loaded: Loaded, mixed_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(loaded.model), "supports_gradient_checkpointing", False)
    with pytest.raises(UsageError, match="cannot compute its activations twice"):
        measure_saliency(loaded, mixed_samples, layout=Layout(checkpointing=True))
