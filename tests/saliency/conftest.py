"""A tiny LLaVA in float64 with everything in float64, and what counts or interrupts a measurement."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Sample

sys.path.insert(0, str(Path(__file__).parents[1] / "checkers"))


class Interrupted(Exception):
    """Stands for a killed run."""


class Watcher:
    """A `Progress` that remembers notes and stages, and can interrupt after some samples."""

    def __init__(self, die_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []
        """Samples of each step, the first entry what was there at the start."""
        self.die_after = die_after

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(amount: int) -> None:
            self.steps.append(amount)
            if self.die_after is not None and sum(self.steps) >= self.die_after:
                raise Interrupted

        yield advance

    def note(self, text: str) -> None:
        self.notes.append(text)


class Changed:
    """A backbone with some methods replaced."""

    def __init__(self, backbone: Any, **methods: Any) -> None:
        self._backbone = backbone
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


@pytest.fixture(scope="session")
def interrupted() -> type[Exception]:
    return Interrupted


@pytest.fixture(scope="session")
def watcher() -> Callable[..., Watcher]:
    """`watcher(die_after=None)`: a progress that remembers, and can interrupt."""
    return Watcher


@pytest.fixture(scope="session")
def changed_backbone() -> Callable[..., Loaded]:
    """`changed_backbone(loaded, collate=...)`: `loaded` with methods of its backbone replaced."""

    def change(loaded: Loaded, **methods: Any) -> Loaded:
        backbone: Any = Changed(loaded.backbone, **methods)
        return replace(loaded, backbone=backbone)

    return change


@pytest.fixture(scope="session")
def seven_samples(mixed_samples: list[Sample], make_sample: Callable[..., Sample]) -> list[Sample]:
    """Pictures and text, short and long, in no regular order; two batches of 4, the last one partial."""
    return [
        *mixed_samples,
        make_sample("e", "Which city ?", "oslo"),
        make_sample("f", "What is the name ?", "Anna", seed=3),
        make_sample("g", "What is the food ?", "The food of Anna Berg is rice .", seed=4),
    ]


@pytest.fixture
def llava64(tiny_llava: Path) -> Loaded:
    """The tiny LLaVA in float64, weights as the caller likes them; a copy of its own."""
    return load(tiny_llava, torch.float64)


@pytest.fixture
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes RMSNorm in float32 whatever the model's dtype."""
    from transformers.models.llama import modeling_llama as code

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(code.LlamaRMSNorm, "forward", norm)


@pytest.fixture(scope="session")
def one_by_one() -> Callable[[Loaded, Sequence[Sample]], list[dict[str, torch.Tensor]]]:
    """`one_by_one(loaded, samples)`: a batch of every sample alone."""

    def collate(loaded: Loaded, samples: Sequence[Sample]) -> list[dict[str, torch.Tensor]]:
        return [loaded.backbone.collate(loaded.processor, [sample]) for sample in samples]

    return collate
