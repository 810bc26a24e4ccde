"""Two processes measure a part as one does."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import load
from mmsurgery.data.samples import Sample
from mmsurgery.errors import UsageError
from mmsurgery.saliency import parts as parts_module
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.settings import ModelSettings, Settings
from mmsurgery.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks_pair import Ended, forked

SCRIPT = """
import os, pickle, sys
from pathlib import Path
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.saliency import parts
from mmsurgery.settings import ModelSettings, Settings
from mmsurgery.workspace import SILENT, Workspace

data, said, die = sys.argv[1:]
data, calls = pickle.loads(Path(data).read_bytes()), eval(said)

class Fake:
    name = "fake"
    def parts(self, source): return tuple(data)
    def columns(self, source): return ()
    def samples(self, source, part): return data[part]

class Noted:
    def __init__(self): self.notes, self.done = [], 0
    def note(self, text): self.notes.append(text)
    def stage(self, what, total):
        import contextlib
        @contextlib.contextmanager
        def staged():
            yield self.advance
        return staged()
    def advance(self, amount):
        self.done += amount
        if os.environ["RANK"] == die and self.done >= 2:
            os._exit(9)

parts.benchmark = lambda name: Fake()
Snapshots.interval = Snapshots.share = 0.0
parts.Ranks.watched = lambda self, progress: progress
progress = Noted()
for root, vanilla, options in calls:
    workspace = Workspace(Path(root), Settings(models=ModelSettings(vanilla=vanilla)))
    for result in parts.measure_parts(workspace, progress=progress, **options):
        print(result.part, result.units, result.supervised_tokens, result.up_to_date)
print(progress.notes)
"""


Call = tuple[str, str, dict[str, Any]]
"""Workspace, vanilla model, and what `measure_parts` is called with."""


@pytest.fixture
def data(seven_samples: list[Sample]) -> dict[str, list[Sample]]:
    return {"forget_vqa": seven_samples, "retain_vqa": seven_samples[::-1][:5], "retain_qa": seven_samples[1:2]}


@pytest.fixture
def two(tmp_path: Path, data: dict[str, list[Sample]]) -> Callable[..., list[Ended]]:
    """`two(calls, die="")`: how two ranks ended, one of which may be killed."""
    (tmp_path / "data").write_bytes(pickle.dumps(data))
    return lambda calls, die="": forked(SCRIPT, str(tmp_path / "data"), repr(calls), die)


@pytest.fixture
def float64(tiny_llava: Path, tmp_path: Path) -> Path:
    """The tiny LLaVA as a checkpoint in float64."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "float64"
    folder.mkdir()
    for file in tiny_llava.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = {name: value.double() for name, value in load_file(tiny_llava / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny_llava / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float64"}))
    return folder


def worst(found: SaliencyMap, expected: SaliencyMap) -> float:
    assert set(found.arrays) == set(expected.arrays)
    return max(
        float(np.abs(found.arrays[name] - array).max() / max(np.abs(array).max(), 1e-300))
        for name, array in expected.arrays.items()
        if name not in expected.provenance["zero_gradient"]
    )


def at(root: Path, vanilla: Path) -> Workspace:
    root.mkdir(exist_ok=True)
    return Workspace(root, Settings(models=ModelSettings(vanilla=str(vanilla))))


def test_two_ranks_are_one_process(
    two: Callable[..., list[Ended]],
    float64: Path,
    tiny_llava: Path,
    data: Mapping[str, list[Sample]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With every estimator; units are cut where one process cuts them; a part of one unit occupies one rank.

    Rank 1 is killed after two samples of the first part: the block of rank 0 and the snapshots of rank 1 are there.
    """
    exact, plain = at(tmp_path / "exact", float64), at(tmp_path / "plain", tiny_llava)
    of_exact: list[dict[str, Any]] = [
        {"names": "forget_vqa,retain_qa", "batch_size": 2},
        {"names": "forget_vqa", "estimator": "batch", "batch_size": 2},
        {"names": "forget_vqa", "estimator": "dataset"},
        {"names": "forget_vqa", "batch_size": 2},
    ]
    calls = [(str(exact.root), str(float64), options) for options in of_exact]
    calls.append((str(plain.root), str(tiny_llava), {"names": "forget_vqa,retain_vqa", "batch_size": 3}))

    died = two(calls, die="1")
    assert died[1][0] == 9
    assert died[0][0] not in (0, 9)
    assert "MachineFault" in died[0][2]
    assert [path.name for path in exact.path("saliency").iterdir() if path.is_dir()] == [".resume-forget_vqa"]

    done = two(calls)
    assert [code for code, _, _ in done] == [0, 0], done
    outputs = [output.splitlines() for _, output, _ in done]
    assert outputs[0][:-1] == outputs[1][:-1]
    assert "forget_vqa: the block of rank 1/2 is there" in outputs[0][-1]
    assert "going on after sample 2" in outputs[1][-1]

    loaded = load(float64)
    assert next(loaded.model.parameters()).dtype is torch.float64
    measured = (("forget_vqa", "sample"), ("retain_qa", "sample"), ("forget_vqa", "batch"), ("forget_vqa", "dataset"))
    for (part, estimator), said in zip(measured, outputs[0], strict=False):
        found = SaliencyMap.load(exact.saliency_dir(part, estimator, 2))
        alone = measure_saliency(loaded, data[part], estimator=estimator, batch_size=2, part=part)
        assert worst(found, alone) <= 1e-12
        assert (found.units, found.batch_size, found.no_gradient) == (alone.units, alone.batch_size, alone.no_gradient)
        assert (found.provenance["ranks"], found.provenance.get("shards")) == (2, None)
        assert found.provenance["supervised_tokens"] == alone.provenance["supervised_tokens"]
        assert said == f"{part} {alone.units} {alone.provenance['supervised_tokens']} False"
    assert outputs[0][4].endswith("True")  # the fourth call found its part
    names = ["forget_vqa", "forget_vqa.batch-2", "forget_vqa.dataset", "retain_qa"]
    assert sorted(path.name for path in exact.path("saliency").iterdir()) == names
    assert [entry["folder"] for entry in exact.journal_entries()] == [names[0], names[3], *names[1:3]]

    # float32: one process takes these maps for its own, and hardly a mask bit differs
    methods = {"name": "fake", "parts": lambda _, source: tuple(data), "samples": lambda _, source, part: data[part]}
    monkeypatch.setattr(parts_module, "benchmark", lambda name: type("Fake", (), methods)())
    assert all(result.up_to_date for result in measure_parts(plain, "forget_vqa,retain_vqa"))
    loaded = load(tiny_llava)
    alone_32 = {part: measure_saliency(loaded, data[part], batch_size=3) for part in ("forget_vqa", "retain_vqa")}
    found_32 = {part: SaliencyMap.load(plain.saliency_dir(part)) for part in alone_32}
    assert all(worst(found_32[part], alone_32[part]) <= 1e-6 for part in alone_32)
    different, bits = 0, 0
    for name, sums in alone_32["forget_vqa"].arrays.items():
        ours, theirs = (
            maps["forget_vqa"].saliency(name) >= maps["retain_vqa"].saliency(name) for maps in (found_32, alone_32)
        )
        different, bits = different + int((ours != theirs).sum()), bits + sums.size
    assert different <= 1e-4 * bits, f"{different} of {bits} mask bits differ"


def test_a_shard_on_ranks_is_refused(tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace(tmp_path, Settings(models=ModelSettings(vanilla=str(tiny_llava))))
    with pytest.raises(UsageError, match="shard 1/2 on 2 ranks would cut the parts twice - next: leave out --shard"):
        measure_parts(workspace, "forget_vqa", shard="1/2")
