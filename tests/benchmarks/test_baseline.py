"""The straightforward way gives the numbers that mmsurgery gives: else its times would say nothing."""

from __future__ import annotations

from pathlib import Path

import baseline
import models
import numpy as np
import pytest
import torch
from stages import diff, masks, training

from mmsurgery.artifacts.checkpoint import SINGLE, CheckpointFiles
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import load
from mmsurgery.evaluate.scoring import score
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.methods.registry import method
from mmsurgery.methods.step import References
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.unlearn.loop import Optimisation, train
from mmsurgery.unlearn.masked import MaskedUpdate
from mmsurgery.unlearn.objective import Unlearning
from mmsurgery.unlearn.plan import StepPlan


@pytest.mark.parametrize("family", models.FAMILIES)
def test_fisher_of_batches(work: Path, family: str) -> None:
    loaded = load(models.checkpoint(work, family, "tiny"))
    shown = models.samples(family, "tiny", 5, tokens=48)
    plain = baseline.fisher(loaded, shown, 2)
    found = measure_saliency(loaded, shown, estimator="batch", batch_size=2)
    zero = set(found.provenance["zero_gradient"])
    assert set(plain) == set(found.arrays)
    for name in plain.keys() - zero:
        ours, theirs = found.saliency(name), plain[name].double().numpy()
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), name


def test_bool_mask(work: Path) -> None:
    shapes = {"model.language_model.norm.weight": (7,), "lm_head.weight": (33, 65)}
    maps = [SaliencyMap.load(folder) for folder in masks.saliency(work / "saliency", "llava", shapes)]
    plain = baseline.bool_mask(maps[0], maps[1:], 0.5)
    found = ratio_mask(maps[0], maps[1:], beta=0.5)
    for name in shapes:
        assert np.array_equal(found[name], plain[name].numpy())
    assert 0 < found.selected < found.total


def test_masked_steps_move_the_weights_to_the_same_place(work: Path) -> None:
    folder = models.checkpoint(work, "llava", "tiny")
    ours, plain, start = (load(folder) for _ in range(3))
    forget, retain = training.shown("llava", "tiny", 2)
    mask = training.mask_of(ours)
    update = MaskedUpdate(ours.model, mask)
    places = [StepPlan((0, 1, 2, 3), (0, 1, 2, 3)), StepPlan((4, 5, 6, 7), (4, 5, 6, 7))]
    terms = Unlearning(ours, method("mmunlearner"), update, forget, retain, places, References())
    rate, decay, clip = 1e-3, 0.01, 1.0
    train(
        update,
        terms,
        steps=2,
        optimisation=Optimisation(learning_rate=lambda _: rate, weight_decay=decay, clip_norm=clip),
    )
    bools = {name: torch.from_numpy(mask[name]) for name in mask}
    steps = [(forget[:4], retain[:4]), (forget[4:], retain[4:])]
    baseline.MaskedSteps(plain, bools, rate, decay).run(steps, clip)
    moved = apart = 0.0
    weights = (loaded.model.state_dict().values() for loaded in (ours, plain, start))
    for one, other, was in zip(*weights, strict=True):
        apart += float((one - other).square().sum())
        moved += float((one - was).square().sum())
    assert moved > 0
    assert apart <= 1e-6 * moved


def test_largest_differences(work: Path) -> None:
    before, after = diff.pair(work, "llava", "tiny")
    found = diff.compared("llava", before, after, 50)
    values, _ = baseline.largest([before / SINGLE], [after / SINGLE], 50)
    assert [abs(entry.delta) for entry in found.top] == values.tolist()
    assert found.threshold == float(values[-1])


@pytest.mark.parametrize("family", models.FAMILIES)
def test_scores_of_options(work: Path, family: str) -> None:
    loaded = load(models.checkpoint(work, family, "tiny"))
    items = models.items(family, "tiny", 2, questions=2, tokens=32)
    plain = baseline.option_scores(loaded, items)
    for ours, theirs in zip(score(loaded, items), plain, strict=True):
        assert ours.options == pytest.approx(theirs, abs=1e-5)


def test_counts_of_combined_masks() -> None:
    one, other = ({"a": np.array(bits, bool)} for bits in ([1, 1, 0, 0], [1, 0, 1, 0]))
    assert baseline.combine(one, other) == 1


@pytest.mark.parametrize("family", models.FAMILIES)
def test_models_have_the_parts_of_their_family(work: Path, family: str) -> None:
    files = CheckpointFiles(models.checkpoint(work, family, "tiny"), backbone(family).canonical)
    groups = {backbone(family).address(name).group for name in files.names}
    assert groups == {"vision", "connector", "lm"}
