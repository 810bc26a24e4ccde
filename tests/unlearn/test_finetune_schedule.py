"""Fine-tuning: the schedule's corners, and a loss that does not depend on how a batch is cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from mmsurgery.backbones.loading import load
from mmsurgery.methods.step import Answers
from mmsurgery.unlearn.finetune import Stage, finetune, schedule

if TYPE_CHECKING:
    from mmsurgery.data.samples import Sample


def test_warm_up_peak_and_floor() -> None:
    stage = Stage(steps=130, learning_rate=2.0, warmup=30)
    assert stage.rate(0) == pytest.approx(2.0 / 30)
    assert stage.rate(14) == pytest.approx(1.0)  # half of the warm-up
    assert stage.rate(29) == stage.rate(30) == pytest.approx(2.0)
    assert stage.rate(80) == pytest.approx(2.0 * (0.03 + 0.97 / 2))  # half of the cosine
    assert stage.rate(130) == pytest.approx(0.06)
    assert all(stage.rate(n) > stage.rate(n + 1) for n in range(30, 129))


def test_stages_follow_one_another() -> None:
    rate = schedule([Stage(steps=5, learning_rate=1.0, warmup=2), Stage(steps=3, learning_rate=0.5, warmup=2)])
    assert [rate(0), rate(1), rate(5), rate(6)] == [0.5, 1.0, 0.25, 0.5]
    with pytest.raises(IndexError):
        rate(8)


def test_the_loss_is_a_mean_over_samples_however_the_batch_is_cut(
    tiny_llava: Path, mixed_samples: list[Sample]
) -> None:
    loaded = load(tiny_llava)
    with torch.no_grad():
        batch = loaded.backbone.collate(loaded.processor, mixed_samples)
        expected = float(Answers.of(loaded.model, batch).nll().mean())
    results = []
    for cut in ([mixed_samples], [mixed_samples[:1], [], mixed_samples[1:]]):
        trained, history = finetune(
            load(tiny_llava),
            lambda step, cut=cut: cut,
            [Stage(steps=3, learning_rate=1e-2, warmup=1)],
            weight_decay=0.0,
            clip_norm=1.0,
        )
        assert history.losses[0]["train"] == pytest.approx(expected, rel=1e-5)
        assert history.losses[-1]["train"] < expected
        results.append(history.losses[0]["norm"])
        assert trained.keys() == dict(loaded.model.named_parameters()).keys()
    assert results[0] == pytest.approx(results[1], rel=1e-4)
