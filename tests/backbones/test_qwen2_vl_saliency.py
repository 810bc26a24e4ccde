"""Exact saliency on Qwen2-VL: pictures of unequal grids, a tied head, text beside pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Sample
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery_qwen2_vl import backbone


@pytest.fixture
def float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes norms and vision rotations in float32 whatever the model's dtype."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as code

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
        return q * cos + code.rotate_half(q) * sin, k * cos + code.rotate_half(k) * sin

    monkeypatch.setattr(code.Qwen2VLRMSNorm, "forward", norm)
    monkeypatch.setattr(code, "apply_rotary_pos_emb_vision", rotate)


def one_by_one(loaded: Loaded, samples: list[Sample]) -> dict[str, np.ndarray[Any, Any]]:
    """Sums of squared gradients, one sample and one plain backward pass at a time."""
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for sample in samples:
        batch = backbone.collate(loaded.processor, [sample])
        labels = batch.pop("labels")
        logits = loaded.model(**batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        parameters = dict(loaded.model.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] = sums.get(name, 0) + gradient.numpy() ** 2
    return sums


@pytest.mark.usefixtures("float64_throughout")
@pytest.mark.parametrize("batch_size", [4, 3])
def test_sample_estimator_is_exact(tiny_qwen2_vl: Path, mixed_samples: list[Sample], batch_size: int) -> None:
    loaded = load(tiny_qwen2_vl, torch.float64)
    measured = measure_saliency(loaded, mixed_samples, batch_size=batch_size)
    assert measured.provenance["path"] == "hooks"
    assert measured.tied == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    assert measured.no_gradient == {}
    expected = one_by_one(loaded, mixed_samples)
    assert expected.keys() == loaded.addresses.keys()
    for name, sums in expected.items():
        assert np.abs(measured.sum_of_squares(name) - sums).max() <= 1e-10 * sums.max(), name


def test_text_alone_moves_no_picture_weights(loaded_qwen2_vl: Loaded, mixed_samples: list[Sample]) -> None:
    measured = measure_saliency(loaded_qwen2_vl, mixed_samples[1:2])
    groups = {loaded_qwen2_vl.addresses[name].group for name in measured.no_gradient}
    assert groups == {"vision", "connector"}
