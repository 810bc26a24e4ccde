"""A workspace of a micro model with a few samples, and what counts the tensors that are alive."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.data.samples import Item, Sample
from mmsurgery.names import Selector
from mmsurgery.saliency import parts
from mmsurgery.settings import BenchmarkSettings, ModelSettings, RecipeSettings, Settings
from mmsurgery.workspace import Workspace

_WORDS = "What is the city of this person ? The lisbon oslo soup rice . food"
WORDS = _WORDS.split()


class Benchmark:
    """Six samples to forget and six to retain, each with a picture, six of text; a column of four items."""

    name = "tiny"

    def __init__(self, make_sample: Callable[..., Sample]) -> None:
        def make(prefix: str, pictured: bool) -> list[Sample]:
            return [
                make_sample(
                    f"{prefix}{i}",
                    "What is the city of this person ?",
                    f"The city is {('lisbon', 'oslo')[i % 2]} .",
                    **({"seed": 10 * len(prefix) + i, "width": 48, "height": 48} if pictured else {}),
                )
                for i in range(6)
            ]

        self.sets = {
            "forget_vqa": make("forget", True),
            "retain_vqa": make("kept", True),
            "retain_qa": make("text", False),
        }

    def parts(self, source: Any) -> tuple[str, ...]:
        return tuple(self.sets)

    def columns(self, source: Any) -> tuple[str, ...]:
        return ("forget_vqa",)

    def samples(self, source: Any, part: str) -> list[Sample]:
        return self.sets[part]

    def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
        if task != "classification":
            return []
        options = {"A": "The city is lisbon .", "B": "The city is oslo .", "C": "The city is oslo ."}
        return [
            Item(s.id, s.person, s.question, column=column, options=options, gold="A", image_bytes=s.image_bytes)
            for s in self.sets["forget_vqa"][:4]
        ]


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained LLaVA of 0.4 M weights; read only."""
    from mmsurgery_llava import backbone

    folder = tmp_path_factory.mktemp("models") / "micro"
    backbone.micro(folder, WORDS, seed=0, size="portraits")
    return folder


@pytest.fixture
def ws(tmp_path: Path, micro: Path, make_sample: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with models `vanilla` and `reference`, and a mask `default` of half of lm and connector."""
    from mmsurgery.evaluate import asked
    from mmsurgery.unlearn import request
    from mmsurgery.unlearn import train_run as applying

    found = Benchmark(make_sample)
    rooms = ("mmsurgery.plans.unlearned", "mmsurgery.plans.saliency")
    for module in (request, applying, parts, asked, *map(importlib.import_module, rooms)):
        monkeypatch.setattr(module, "benchmark", lambda name: found)
    workspace = Workspace(tmp_path, Settings(recipe=RecipeSettings(learning_rate=1e-3, batch_size=2, epochs=1)))
    for name in ("vanilla", "reference"):
        shutil.copytree(micro, workspace.model_dir(name))
    half_mask(micro).write(workspace.mask_path("default"))
    return workspace


@pytest.fixture
def trainable(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace as one of a benchmark of its own, its model `vanilla` the base."""
    monkeypatch.setattr("mmsurgery.training.benchmark", parts.benchmark)
    settings = dataclasses.replace(
        ws.settings,
        benchmark=BenchmarkSettings(name="tiny"),
        models=ModelSettings(base=str(ws.model_dir("vanilla"))),
    )
    return Workspace(ws.root, settings)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    """Makes a recipe file: two epochs in batches of two, and what else it is to say."""

    def make(text: str) -> str:
        file = tmp_path / "mine.toml"
        file.write_text(f'epochs = 2\nbatch_size = 2\nlearning_rate = 1e-3\nsource = "a test"\n{text}')
        return str(file)

    return make


def half_mask(folder: Path) -> Mask:
    from mmsurgery_llava import backbone

    files = CheckpointFiles(folder, backbone.canonical)
    addresses = {name: backbone.address(name) for name in files.names}
    inside, rng = Selector("lm,connector").select(addresses), np.random.default_rng(0)
    parameters = {
        name: MaskParameter(
            files.shape(name), addresses[name], pack(rng.random(files.shape(name)) < 0.5 * (name in inside))
        )
        for name in files.names
    }
    base = {"model_type": "llava", "model_sha256": files.digest()}
    return Mask(
        rule="random", beta=None, estimator=None, mixture=None, modules="lm,connector", parameters=parameters, base=base
    )


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans run nothing for their time: what they leave in memory would be counted, too."""
    monkeypatch.setattr("mmsurgery.plans.probe.free_memory", lambda: 0)


class Census:
    """A `Progress` that counts the bytes of the tensors made since, after every unit of a measurement or training."""

    def __init__(self) -> None:
        gc.collect()  # what would be freed later would leave its addresses to the run's own tensors
        self.before = set(storages())
        gc.freeze()  # what is there already is not looked through at every count
        self.most = 0

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        if what.startswith(("saliency", "reference", "unlearning", "training")):
            yield lambda amount: self.count()
        else:
            yield lambda amount: None

    def count(self) -> None:
        self.most = max(self.most, sum(size for place, size in storages().items() if place not in self.before))

    def note(self, text: str) -> None:
        return


def storages() -> dict[int, int]:
    """Address -> bytes of the memory of every tensor that is alive, gradients included."""
    import torch

    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu" and tensor.layout == torch.strided:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.fixture
def census() -> Iterator[Census]:
    yield Census()
    gc.unfreeze()
