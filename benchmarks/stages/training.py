"""A masked optimizer step against one without a mask, of whole weights in both scopes and of LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import baseline
import measure
import models
import torch

from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Sample
from mmsurgery.methods.registry import method
from mmsurgery.methods.step import References
from mmsurgery.unlearn.adapters import LowRankUpdate
from mmsurgery.unlearn.loop import Optimisation, deterministic, train
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import MaskedUpdate, Update
from mmsurgery.unlearn.objective import Unlearning
from mmsurgery.unlearn.plan import StepPlan
from stages import Setup, weights
from stages.masks import random_mask

BATCH = 4
"""Samples to forget, and to keep, of one step."""
STEPS = {"tiny": 1, "1M": 6, "30M": 3, "190M": 2}
"""Of one run, by size of the model; 2 of any other."""
RATE, DECAY, CLIP, RANK = 1e-6, 0.01, 1.0, 16
LIMIT = (1.08, 1.03)


def run(setup: Setup) -> Iterator[measure.Figure]:
    for family, size, model in setup.models():
        yield from whole_weights(setup, family, size, model)
        measure.free()
        yield from low_rank(setup, family, size, model)
        measure.free()


class Trainer:
    """A model of its own, trained by the steps that the verbs train by; weights go on from run to run.

    Args:
        update: makes what is trained of it, anew for every run.
    """

    def __init__(self, setup: Setup, family: str, size: str, update: Callable[[Loaded], Update]) -> None:
        self.loaded, self.update, self.steps = (
            load(models.checkpoint(setup.work, family, size)),
            update,
            STEPS.get(size, 2),
        )
        self.forget, self.retain = shown(family, size, self.steps, setup.tokens)
        self.made: Update | None = None

    def prepare(self) -> None:
        self.loaded.model.zero_grad(set_to_none=True)
        if self.made is None:
            self.made = self.update(self.loaded)

    def run(self) -> None:
        assert self.made is not None
        places = [tuple(range(BATCH * step, BATCH * (step + 1))) for step in range(self.steps)]
        plan = [StepPlan(each, each) for each in places]
        chosen = method("ga_diff" if isinstance(self.made, MaskedUpdate) else "mmunlearner")
        terms = Unlearning(self.loaded, chosen, self.made, self.forget, self.retain, plan, References())
        optimisation = Optimisation(learning_rate=lambda step: RATE, weight_decay=DECAY, clip_norm=CLIP)
        with deterministic(torch.get_num_threads()):
            train(self.made, terms, steps=self.steps, optimisation=optimisation)


def shown(family: str, size: str, steps: int, tokens: int = models.TOKENS) -> tuple[list[Sample], list[Sample]]:
    """Samples to forget and to keep, of so many steps."""
    forget, retain = (
        models.samples(family, size, BATCH * steps, tokens=tokens, part=part) for part in ("forget_vqa", "retain_vqa")
    )
    return forget, retain


def mask_of(loaded: Loaded) -> Mask:
    """Half of all weights."""
    shapes = {name: tuple(parameter.shape) for name, parameter in loaded.model.named_parameters()}
    return random_mask(loaded.backbone.model_type, shapes, 0)


def whole_weights(setup: Setup, family: str, size: str, model: str) -> Iterator[measure.Figure]:
    """All modules are trained on every side; a mask of half the weights."""
    trainers = {
        "no mask": Trainer(setup, family, size, lambda loaded: MaskedUpdate(loaded.model, None)),
        "scope forget": Trainer(setup, family, size, lambda loaded: _masked(loaded, strict=False)),
        "scope all": Trainer(setup, family, size, lambda loaded: _masked(loaded, strict=True)),
    }
    plain = load(models.checkpoint(setup.work, family, size))
    count, steps = weights(plain), trainers["no mask"].steps
    forget, retain = shown(family, size, steps, setup.tokens)
    batches = [(forget[i : i + BATCH], retain[i : i + BATCH]) for i in range(0, BATCH * steps, BATCH)]
    bools = {name: torch.from_numpy(values) for name, values in _bools(mask_of(plain))}
    straightforward = baseline.MaskedSteps(plain, bools, RATE, DECAY)
    found = measure.in_turn(
        {
            **{name: each.run for name, each in trainers.items()},
            "bool mask": lambda: straightforward.run(batches, CLIP),
        },
        setup.rounds,
        before=lambda name: trainers[name].prepare() if name in trainers else None,
    )
    for side in ("scope forget", "scope all"):
        yield measure.ratio(
            found, side, "no mask", baseline="bool mask", what=f"masked steps, {side}", against="steps without a mask",
            model=model, detail={"weights": count, "steps": steps}, **setup.goal(count, *LIMIT),
        )  # fmt: skip


def low_rank(setup: Setup, family: str, size: str, model: str) -> Iterator[measure.Figure]:
    trainers = {
        "LoRA": Trainer(setup, family, size, lambda loaded: _adapters(loaded, None)),
        "masked LoRA": Trainer(setup, family, size, lambda loaded: _adapters(loaded, mask_of(loaded))),
    }
    count = weights(trainers["LoRA"].loaded)
    found = measure.in_turn(
        {name: each.run for name, each in trainers.items()}, setup.rounds, before=lambda name: trainers[name].prepare()
    )
    yield measure.ratio(
        found, "masked LoRA", "LoRA", what=f"masked LoRA {RANK}", against="LoRA without a mask", model=model,
        detail={"weights": count, "steps": trainers["LoRA"].steps}, **setup.goal(count, *LIMIT),
    )  # fmt: skip


def _masked(loaded: Loaded, *, strict: bool) -> MaskedUpdate:
    return MaskedUpdate(loaded.model, mask_of(loaded), strict=strict)


def _adapters(loaded: Loaded, mask: Mask | None) -> LowRankUpdate:
    lora = LoRA(rank=RANK)
    return LowRankUpdate(loaded.model, lora, lora.targets(loaded.addresses, loaded.backbone, mask), mask, seed=0)


def _bools(mask: Mask) -> Iterator[tuple[str, Any]]:
    return ((name, mask[name]) for name in mask)


TASKS: dict[str, Callable[..., Callable[[], Any]]] = {}
