"""Plain fine-tuning on the training loop: how the models are made that unlearning starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mmsurgery.data.samples import Sample
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from mmsurgery.artifacts.snapshots import Snapshots
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.loop import Evaluation
    from mmsurgery.unlearn.masked import Update
    from mmsurgery.unlearn.resume import History

Batches = Callable[[int], Sequence[Sequence[Sample]]]
"""Step from 0 -> its batch, in sub-batches that are run one after the other."""

FLOOR = 0.03
"""Share of the learning rate that a stage ends with."""


class Rates(Protocol):
    """Steps with the learning rate of each, counted from 0."""

    @property
    def steps(self) -> int: ...

    def rate(self, step: int) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Steps at one learning rate."""

    steps: int
    learning_rate: float

    def rate(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class Linear(Constant):
    """Steps whose learning rate falls in equal parts, from the full one at the first to zero after the last."""

    def rate(self, step: int) -> float:
        return self.learning_rate * (self.steps - step) / self.steps


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps under one schedule: linear warm-up, then a cosine down to `FLOOR`."""

    steps: int
    learning_rate: float
    warmup: int = 30

    def rate(self, step: int) -> float:
        """Learning rate of the stage's step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)


def schedule(stages: Sequence[Rates]) -> Callable[[int], float]:
    """Step from 0 over all stages -> learning rate."""

    def rate(step: int) -> float:
        for stage in stages:
            if step < stage.steps:
                return stage.rate(step)
            step -= stage.steps
        raise IndexError(step)

    return rate


def finetune(
    loaded: Loaded,
    batches: Batches,
    stages: Sequence[Rates],
    *,
    update: Update | None = None,
    weight_decay: float,
    clip_norm: float,
    betas: tuple[float, float] = (0.9, 0.999),
    remember: bool = True,
    snapshots: Snapshots | None = None,
    evaluation: Evaluation | None = None,
    what: str = "training",
    progress: Progress = SILENT,
) -> tuple[dict[str, torch.nn.Parameter], History]:
    """Minimise the mean over each step's samples of their mean answer NLL (Eq. 14).

    Args:
        loaded: changed in place; float32 parameters where no `update` is given.
        batches: sub-batches of a step are run one after the other, and their gradients added up.
        stages: one after the other, the optimizer's state kept.
        update: what is trained of the model; every weight where None.
        remember: keep encoded texts and pictures in memory.

    Returns:
        What the optimizer moved by name (`update.trainable`), and the run's curve.

    Raises:
        UnusableData: where a loss or gradient is not finite.
    """
    from mmsurgery.methods.step import Answers
    from mmsurgery.unlearn.loop import Optimisation, train
    from mmsurgery.unlearn.masked import MaskedUpdate

    update = update or MaskedUpdate(loaded.model, None)
    device = next(loaded.model.parameters()).device
    cache: dict[Any, Any] | None = {} if remember else None

    def accumulate(step: int) -> dict[str, float]:
        total, parts = 0.0, [part for part in batches(step) if part]
        size = sum(len(part) for part in parts)
        for part in parts:
            batch = loaded.backbone.collate(loaded.processor, part, cache=cache)
            answers = Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()}, part)
            loss = answers.nll().sum() / size
            if loss.requires_grad:  # text tells nothing of a vision encoder that is trained alone
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return {"train": total}

    history = train(
        update,
        accumulate,
        steps=sum(stage.steps for stage in stages),
        optimisation=Optimisation(
            learning_rate=schedule(stages), weight_decay=weight_decay, clip_norm=clip_norm, betas=betas
        ),
        snapshots=snapshots,
        evaluation=evaluation,
        batch_ids=lambda step: ", ".join(sample.id for part in batches(step) for sample in part),
        what=what,
        progress=progress,
    )
    return dict(update.trainable), history
