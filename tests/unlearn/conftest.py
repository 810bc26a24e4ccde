"""Masks and data for training tiny models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.data.samples import Item, Sample
from mmsurgery.names import Selector
from mmsurgery.settings import RecipeSettings, Settings
from mmsurgery.unlearn import request
from mmsurgery.unlearn import train_run as applying
from mmsurgery.workspace import Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded


@pytest.fixture(scope="session")
def random_mask() -> Callable[..., Mask]:
    """`random_mask(loaded, modules, density=0.5, seed=0)`: independent bits inside the modules."""

    def make(loaded: Loaded, modules: str, density: float = 0.5, seed: int = 0, **changes: Any) -> Mask:
        rng = np.random.default_rng(seed)
        inside = Selector(modules).select(loaded.addresses)
        parameters = {}
        for name, parameter in loaded.model.named_parameters():
            chosen = rng.random(tuple(parameter.shape)) < (density if name in inside else 0.0)
            parameters[name] = MaskParameter(tuple(parameter.shape), loaded.addresses[name], pack(chosen))
        values = {
            "rule": "random",
            "beta": None,
            "estimator": None,
            "mixture": None,
            "modules": modules,
            "parameters": parameters,
            "base": {"model_type": loaded.backbone.model_type, "model_sha256": loaded.model_sha256},
            **changes,
        }
        return Mask(**values)

    return make


RECIPE = RecipeSettings(learning_rate=1e-2, batch_size=2, epochs=2)


class Benchmark:
    """Four samples to forget, five to retain, a column of two items and one of none."""

    name = "tiny"
    recipe = RECIPE

    def __init__(self, make_sample: Callable[..., Sample]) -> None:
        answers = ["The city is lisbon .", "The city is oslo .", "The food is soup .", "rice"]

        def make(prefix: str, count: int, seed: int) -> list[Sample]:
            return [
                make_sample(f"{prefix}{i}", "What is the city of this person ?", answers[i % 4], seed=seed + i)
                for i in range(count)
            ]

        self.sets = {"forget_vqa": make("forget", 4, 0), "retain_vqa": make("retain", 5, 10)}

    def parts(self, source: Any) -> tuple[str, ...]:
        return tuple(self.sets)

    def columns(self, source: Any) -> tuple[str, ...]:
        return ("forget_vqa", "empty")

    def samples(self, source: Any, part: str) -> list[Sample]:
        return self.sets[part]

    def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
        if column == "empty" or task != "classification":
            return []
        options = {"A": "The city is lisbon .", "B": "The city is oslo ."}
        return [
            Item(s.id, s.person, s.question, column=column, options=options, gold="A", image_bytes=s.image_bytes)
            for s in self.sets["forget_vqa"][:2]
        ]


@pytest.fixture(scope="session")
def make_benchmark(make_sample: Callable[..., Sample]) -> Callable[[], Benchmark]:
    """A new tiny benchmark, for fixtures that outlive a test."""
    return lambda: Benchmark(make_sample)


@pytest.fixture
def tiny(make_sample: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    found = Benchmark(make_sample)
    for module in (request, applying):
        monkeypatch.setattr(module, "benchmark", lambda name: found)
    return found


@pytest.fixture
def ws(
    tmp_path: Path, tiny: Benchmark, tiny_llava: Path, random_mask: Callable[..., Mask], loaded_llava: Loaded
) -> Workspace:
    """A workspace with vanilla model and a mask `default` of half of lm and connector."""
    workspace = Workspace(tmp_path, Settings(recipe=RECIPE))
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    random_mask(loaded_llava, "lm,connector").write(workspace.mask_path("default"))
    return workspace
