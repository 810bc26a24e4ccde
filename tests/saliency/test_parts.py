"""`saliency` on a workspace: what is measured, what is there already, shards, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.loading import Loaded, device_name, load
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import InputRefused, MachineFault, Mismatch, MissingArtifact, UsageError
from mmsurgery.saliency import parts as parts_module
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.saliency.shards import Shard, unfinished_shards
from mmsurgery.settings import ModelSettings, RecipeSettings, Settings
from mmsurgery.workspace import Workspace


class Fake:
    """A benchmark of three parts over the same few samples."""

    name = "fake"

    def __init__(self, samples: list[Sample]) -> None:
        self.data = {
            "forget_vqa": samples,
            "forget_qa": [sample for sample in samples if sample.image_bytes is None],
            "retain_vqa": samples[::-1],
            "retain_qa": samples[1:2],
        }

    def parts(self, source: Any) -> tuple[str, ...]:
        return tuple(self.data)

    def columns(self, source: Any) -> tuple[str, ...]:
        return ()

    def samples(self, source: Any, part: str) -> list[Sample]:
        return self.data[part]


@pytest.fixture
def benchmark(seven_samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(list(seven_samples))
    monkeypatch.setattr(parts_module, "benchmark", lambda name: fake)
    return fake


@pytest.fixture
def workspace(benchmark: Fake, tiny_llava: Path, tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws", Settings(models=ModelSettings(vanilla=str(tiny_llava))))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every loading of a model."""
    from mmsurgery.backbones import loading

    seen: list[Path] = []
    plain = loading.load

    def count(path: Path, *args: Any) -> Loaded:
        seen.append(path)
        return plain(path, *args)

    monkeypatch.setattr(loading, "load", count)
    return seen


@pytest.fixture(autouse=True)
def _root(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_set_is_measured_part_by_part_with_one_loading(
    workspace: Workspace, loads: list[Path], loaded_llava: Loaded, benchmark: Fake
) -> None:
    results = measure_parts(workspace, "forget, preserve")
    assert [result.part for result in results] == ["forget_vqa", "forget_qa", "retain_vqa", "retain_qa"]
    assert [result.units for result in results] == [7, 2, 7, 1]
    assert not any(result.up_to_date or result.merged or result.shard for result in results)
    assert len(loads) == 1
    assert sorted(path.name for path in workspace.path("saliency").iterdir()) == sorted(benchmark.data)
    for part, samples in benchmark.data.items():
        stored = SaliencyMap.load(workspace.saliency_dir(part))
        direct = measure_saliency(loaded_llava, samples)
        assert (stored.part, stored.data_sha256) == (part, data_sha256(samples))
        assert stored.no_gradient == direct.no_gradient
        assert all((stored.sum_of_squares(name) == array).all() for name, array in direct.arrays.items())
        assert stored.provenance["inputs"] == direct.provenance["inputs"]
    entries = workspace.journal_entries()
    assert [(entry["event"], entry["part"]) for entry in entries] == [("saliency", part) for part in benchmark.data]
    assert results[1].no_gradient == sum(a.group != "lm" for a in loaded_llava.addresses.values())
    assert results[3].supervised_tokens == len(benchmark.data["retain_qa"][0].answer.split()) + 1


def test_again_is_up_to_date_and_loads_nothing(workspace: Workspace, loads: list[Path]) -> None:
    first = measure_parts(workspace, ["retain_qa"])
    before = files(workspace.saliency_dir("retain_qa"))
    again = measure_parts(workspace, ["retain_qa"], batch_size=2)  # no part of the result: `sample` is exact at any
    assert (first[0].up_to_date, again[0].up_to_date) == (False, True)
    assert again[0].supervised_tokens == first[0].supervised_tokens
    assert len(loads) == 1
    assert len(workspace.journal_entries()) == 1
    measure_parts(workspace, ["retain_qa"], force=True)
    assert len(loads) == 2
    assert files(workspace.saliency_dir("retain_qa")) == before


def test_up_to_date_imports_no_torch(workspace: Workspace, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsurgery.artifacts.digests._RACY", 0)  # the model's files are a moment old
    measure_parts(workspace, ["retain_qa"])
    script = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from mmsurgery.artifacts import digests
digests._RACY = 0
from mmsurgery.data.samples import Sample
from mmsurgery.saliency import parts
from mmsurgery.settings import ModelSettings, Settings
from mmsurgery.workspace import Workspace
sample = Sample("b", "person-b", "What is the food of Anna Berg ?", answer="The food is soup .")
class Fake:
    def parts(self, source): return ("retain_qa",)
    def columns(self, source): return ()
    def samples(self, source, part): return [sample]
parts.benchmark = lambda name: Fake()
ws = Workspace(Path({str(workspace.root)!r}), Settings(models=ModelSettings(vanilla={str(tiny_llava)!r})))
assert parts.measure_parts(ws, "retain_qa")[0].up_to_date
assert "torch" not in sys.modules and "transformers" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


def test_estimators_have_folders_of_their_own(workspace: Workspace) -> None:
    for options in ({}, {"estimator": "batch", "batch_size": 4}, {"estimator": "batch"}, {"estimator": "dataset"}):
        measure_parts(workspace, "retain_qa", **options)  # type: ignore[arg-type]
    measure_parts(workspace, "forget_vqa", estimator="batch", batch_size=3)
    names = ["forget_vqa.batch-3", "retain_qa", "retain_qa.batch-4", "retain_qa.dataset"]
    assert sorted(path.name for path in workspace.path("saliency").iterdir()) == names
    assert SaliencyMap.load(workspace.saliency_dir("forget_vqa", "batch", 3)).units == 3


@pytest.mark.parametrize("change", ["data", "threads", "store", "model"])
def test_another_result_is_refused_without_force(
    workspace: Workspace, benchmark: Fake, tiny_llava: Path, tmp_path: Path, change: str
) -> None:
    measure_parts(workspace, "retain_qa")
    before = files(workspace.saliency_dir("retain_qa"))
    options: dict[str, Any] = {}
    if change == "data":
        benchmark.data["retain_qa"] = benchmark.data["forget_qa"]
    elif change == "threads":
        workspace.settings = Settings(models=workspace.settings.models, recipe=RecipeSettings(threads=2))
    elif change == "store":
        options["store"] = "bfloat16"
    else:
        from mmsurgery_llava import backbone

        backbone.micro(tmp_path / "other", ["What"], seed=1, size="tiny")
        workspace.settings = Settings(models=ModelSettings(vanilla=str(tmp_path / "other")))
        benchmark.data["retain_qa"] = [Sample("b", "b", "What", answer="What")]
    with pytest.raises(Mismatch, match={"data": "data_sha256", "model": "model_sha256"}.get(change, change)) as caught:
        measure_parts(workspace, "retain_qa", **options)
    assert caught.value.code == 4
    assert files(workspace.saliency_dir("retain_qa")) == before
    (result,) = measure_parts(workspace, "retain_qa", force=True, **options)
    assert not result.up_to_date
    assert files(workspace.saliency_dir("retain_qa")) != before


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
def test_another_configuration_is_another_measurement(workspace: Workspace, tmp_path: Path, file: str) -> None:
    """A foreign checkpoint has no run record that would hold its configuration."""
    folder = tmp_path / "vanilla"
    shutil.copytree(workspace.existing_model("vanilla"), folder)
    workspace.settings = Settings(models=ModelSettings(vanilla=str(folder)))
    measure_parts(workspace, "retain_qa")
    value = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**value, "note": 1}))
    with pytest.raises(Mismatch, match="companions_sha256"):
        measure_parts(workspace, "retain_qa")
    (again,) = measure_parts(workspace, "retain_qa", force=True)
    assert not again.up_to_date


def test_half_the_size_on_request(workspace: Workspace) -> None:
    measure_parts(workspace, "retain_qa")
    whole = SaliencyMap.load(workspace.saliency_dir("retain_qa"))
    exact = {name: whole.sum_of_squares(name) for name in whole.arrays}
    size = (workspace.saliency_dir("retain_qa") / "saliency.h5").stat().st_size
    measure_parts(workspace, "retain_qa", store="bfloat16", force=True)
    stored = SaliencyMap.load(workspace.saliency_dir("retain_qa"))
    assert (workspace.saliency_dir("retain_qa") / "saliency.h5").stat().st_size < 0.75 * size  # tiny: much is structure
    assert all(np.abs(stored.sum_of_squares(n) - array).max() <= array.max() / 256 for n, array in exact.items())


def test_up_to_date_needs_no_lock(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder cannot be written, or another process holds the lock."""
    measure_parts(workspace, "retain_qa")
    monkeypatch.setattr(Workspace, "lock", lambda self: pytest.fail("locked"))
    assert measure_parts(workspace, "retain_qa")[0].up_to_date


def test_a_damaged_map_is_not_up_to_date(workspace: Workspace) -> None:
    measure_parts(workspace, "retain_qa")
    path = workspace.saliency_dir("retain_qa") / "saliency.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputRefused, match="damaged"):
        measure_parts(workspace, "retain_qa")
    measure_parts(workspace, "retain_qa", force=True)
    assert measure_parts(workspace, "retain_qa")[0].up_to_date


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": "forget_vaq"}, UsageError, "did you mean 'forget_vqa'"),
        ({"names": "realworld_vqa"}, UsageError, "no set or part 'realworld_vqa'"),
        ({"estimator": "batches"}, UsageError, "did you mean 'batch'"),
        ({"store": "float16"}, UsageError, "no store 'float16'"),
        ({"batch_size": 0}, UsageError, "batch size 0"),
        ({"shard": "3/2"}, UsageError, "'3/2' is no shard"),
        ({"shard": "0/2"}, UsageError, "'0/2' is no shard"),
        ({"shard": "half"}, UsageError, "'half' is no shard"),
        ({"shard": "1/8"}, UsageError, "too few for 8 shards"),
        ({"model": "golden"}, MissingArtifact, "no model 'golden'"),
    ],
)
def test_wrong_arguments_are_refused(
    workspace: Workspace, arguments: dict[str, Any], error: type[UsageError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        measure_parts(workspace, **{"names": "forget", **arguments})
    assert caught.value.code == 2
    assert not any(path.is_dir() for path in workspace.path("saliency").glob("[!.]*"))


def test_a_set_is_what_the_benchmark_has_of_it(workspace: Workspace, benchmark: Fake) -> None:
    """Own pictures without text have no `forget_qa` and no `retain_qa`; `mask` takes the set as it is there."""
    del benchmark.data["forget_qa"], benchmark.data["retain_qa"]
    assert parts_module.named_parts(workspace, "forget,preserve") == ["forget_vqa", "retain_vqa"]
    with pytest.raises(UsageError, match="no set or part 'retain_qa'"):
        parts_module.named_parts(workspace, "preserve,retain_qa")
    del benchmark.data["retain_vqa"]
    with pytest.raises(UsageError, match="benchmark 'fake' has no part of set 'preserve' - next: it has forget_vqa"):
        parts_module.named_parts(workspace, "forget,preserve")


def test_anchors_where_there_are_none(workspace: Workspace) -> None:
    with pytest.raises(MissingArtifact, match=r"extra/anchors: no such folder - next: put there pictures of"):
        parts_module.named_parts(workspace, "forget,anchor_vqa")


def test_one_writer_at_a_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsurgery.workspace.LOCK_TIMEOUT", 0.05)
    with workspace.lock(), pytest.raises(MachineFault, match="is in use by"):
        measure_parts(workspace, "retain_qa")


def test_a_model_that_changes_meanwhile_is_refused(
    workspace: Workspace, tiny_llava: Path, tmp_path: Path, watcher: Callable[..., Any]
) -> None:
    folder = tmp_path / "vanilla"
    shutil.copytree(tiny_llava, folder)
    workspace.settings = Settings(models=ModelSettings(vanilla=str(folder)))

    class Meddler(watcher):  # type: ignore[misc, valid-type]
        def stage(self, what: str, total: int) -> Any:
            path = folder / "model.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            return super().stage(what, total)

    with pytest.raises(InputRefused, match="changed while it was measured"):
        measure_parts(workspace, "retain_qa", progress=Meddler())
    assert not workspace.saliency_dir("retain_qa").exists()


def test_a_killed_measurement_goes_on(
    workspace: Workspace,
    watcher: Callable[..., Any],
    interrupted: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    loads: list[Path],
) -> None:
    measure_parts(workspace, "forget_vqa", batch_size=2)
    undisturbed = files(workspace.saliency_dir("forget_vqa"))
    monkeypatch.setattr(Snapshots, "interval", 0.0)
    monkeypatch.setattr(Snapshots, "share", 0.0)
    with pytest.raises(interrupted):
        measure_parts(workspace, "forget_vqa", batch_size=2, force=True, progress=watcher(4))
    assert files(workspace.saliency_dir("forget_vqa")) == undisturbed
    progress = watcher()
    measure_parts(workspace, "forget_vqa", batch_size=2, force=True, progress=progress)
    assert progress.steps == [4, 2, 1]
    assert files(workspace.saliency_dir("forget_vqa")) == undisturbed
    assert [path.name for path in workspace.path("saliency").iterdir()] == ["forget_vqa"]


# shards


def test_blocks_are_whole_units_in_order() -> None:
    for samples in range(1, 30):
        for unit in (1, 4):
            for count in range(1, -(-samples // unit) + 1):
                blocks = [Shard(index, count).block(samples, unit) for index in range(1, count + 1)]
                joined = [sample for block in blocks for sample in range(samples)[block]]
                assert joined == list(range(samples))
                assert all(block.start % unit == 0 for block in blocks)
                lengths = [-(-len(range(samples)[block]) // unit) for block in blocks]
                assert max(lengths) - min(lengths) <= 1
    with pytest.raises(UsageError, match="use at most 2"):
        Shard(1, 3).block(8, 4)


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_shards_add_up(tiny_llava: Path, seven_samples: list[Sample], estimator: str) -> None:
    loaded = load(tiny_llava, torch.float64)
    options: dict[str, Any] = {"estimator": estimator, "batch_size": 2}
    whole = measure_saliency(loaded, seven_samples, **options)
    unit = 2 if estimator == "batch" else 1
    blocks = [seven_samples[Shard(index, 3).block(7, unit)] for index in (1, 2, 3)]
    digest = data_sha256(seven_samples)
    merged = SaliencyMap.merge([measure_saliency(loaded, block, data_sha256=digest, **options) for block in blocks])
    assert (merged.units, merged.no_gradient) == (whole.units, whole.no_gradient)
    for name, array in whole.arrays.items():
        assert np.abs(merged.arrays[name] - array).max() <= 1e-12 * np.abs(array).max()


@pytest.mark.parametrize("estimator", ["sample", "batch"])
def test_the_last_shard_adds_up_all(workspace: Workspace, watcher: Callable[..., Any], estimator: str) -> None:
    options: dict[str, Any] = {"estimator": estimator, "batch_size": 2}
    measure_parts(workspace, "forget_vqa", **options)
    folder = workspace.saliency_dir("forget_vqa", estimator, 2)
    whole = SaliencyMap.load(folder)
    sums = {name: whole.arrays[name] for name in whole.arrays}
    folder.rename(workspace.path("whole"))
    progress = watcher()
    results = [
        measure_parts(workspace, "forget_vqa", shard=f"{index}/3", progress=progress, **options)[0]
        for index in (3, 1, 2)
    ]
    assert [(result.shard, result.merged) for result in results] == [("3/3", False), ("1/3", False), ("2/3", True)]
    assert results[0].path.name == f"{folder.name}.shard-3-of-3"
    assert sum(result.units for result in results) == whole.units
    assert len(progress.notes) == 1
    assert "added up" in progress.notes[0]
    merged = SaliencyMap.load(folder)
    assert (merged.units, merged.no_gradient, merged.tied) == (whole.units, whole.no_gradient, whole.tied)
    assert merged.provenance["shards"] == 3
    for key in ("key", "path", "supervised_tokens", "zero_gradient"):
        assert merged.provenance[key] == whole.provenance[key]
    for name, array in sums.items():
        assert np.abs(merged.arrays[name] - array).max() <= 1e-6 * array.max()
    assert measure_parts(workspace, "forget_vqa", **options)[0].up_to_date
    (again,) = measure_parts(workspace, "forget_vqa", shard="2/3", **options)
    assert (again.up_to_date, again.path) == (True, folder)


def test_the_device_is_recorded_and_is_no_part_of_the_key(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace.saliency_dir("forget_qa")
    measure_parts(workspace, "forget_qa")
    assert SaliencyMap.load(folder).provenance["device"] == "cpu"
    folder.rename(workspace.path("away"))
    measure_parts(workspace, "forget_qa", shard="1/2")
    monkeypatch.setattr("mmsurgery.saliency.measure.device_name", lambda where: "A card")
    assert measure_parts(workspace, "forget_qa", shard="1/2")[0].up_to_date
    assert measure_parts(workspace, "forget_qa", shard="2/2")[0].merged
    assert SaliencyMap.load(folder).provenance["device"] == "A card+cpu"
    assert measure_parts(workspace, "forget_qa")[0].up_to_date
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: f"A card of {where}")
    assert device_name(torch.device("cuda")) == "A card of cuda"


def test_shards_that_are_there_are_added_up_after_a_kill(workspace: Workspace) -> None:
    """Killed between the last shard and the sum."""
    for index in (1, 2):
        measure_parts(workspace, "forget_vqa", shard=f"{index}/2")
    folder = workspace.saliency_dir("forget_vqa")
    first = files(folder)
    folder.rename(workspace.path("away"))
    (result,) = measure_parts(workspace, "forget_vqa", shard="1/2")
    assert (result.up_to_date, result.merged) == (True, True)
    assert files(folder) == first


def test_a_stale_shard_is_refused(workspace: Workspace, benchmark: Fake) -> None:
    measure_parts(workspace, "forget_vqa", shard="1/2")
    benchmark.data["forget_vqa"] = benchmark.data["forget_vqa"][:6]
    with pytest.raises(Mismatch, match=r"forget_vqa\.shard-1-of-2 holds another measurement: data_sha256"):
        measure_parts(workspace, "forget_vqa", shard="2/2")
    assert not workspace.saliency_dir("forget_vqa").exists()
    measure_parts(workspace, "forget_vqa", shard="1/2", force=True)
    assert workspace.saliency_dir("forget_vqa").exists()


def test_an_array_is_redone_shard_by_shard(workspace: Workspace, benchmark: Fake, watcher: Callable[..., Any]) -> None:
    for index in (1, 2):
        measure_parts(workspace, "forget_vqa", shard=f"{index}/2")
    benchmark.data["forget_vqa"] = benchmark.data["forget_vqa"][:6]
    progress = watcher()
    (first,) = measure_parts(workspace, "forget_vqa", shard="1/2", force=True, progress=progress)
    assert not first.merged
    assert progress.notes == ["forget_vqa is not added up yet: 2/2 are of another measurement"]
    (second,) = measure_parts(workspace, "forget_vqa", shard="2/2", force=True)
    assert second.merged
    assert SaliencyMap.load(workspace.saliency_dir("forget_vqa")).units == 6


def test_shards_agree_on_how_their_sum_is_kept(workspace: Workspace, loads: list[Path]) -> None:
    measure_parts(workspace, "forget_vqa", shard="1/2", store="bfloat16")
    with pytest.raises(Mismatch, match=r"shard-1-of-2 is to be added up as bfloat16, shard 2/2 as float32") as caught:
        measure_parts(workspace, "forget_vqa", shard="2/2")
    assert "--store bfloat16" in str(caught.value.next_step)
    assert len(loads) == 1, "before anything is measured"
    (result,) = measure_parts(workspace, "forget_vqa", shard="2/2", store="bfloat16")
    assert result.merged
    assert SaliencyMap.load(workspace.saliency_dir("forget_vqa")).provenance["settings"]["store"] == "bfloat16"


def test_shards_that_are_still_to_be_run(workspace: Workspace) -> None:
    assert unfinished_shards(workspace, "forget_vqa") == []
    measure_parts(workspace, "forget_vqa", shard="2/3")
    assert unfinished_shards(workspace, "forget_vqa") == [Shard(1, 3), Shard(3, 3)]
    assert unfinished_shards(workspace, "forget_qa") == unfinished_shards(workspace, "forget_vqa", "batch") == []
    for index in (1, 3):
        measure_parts(workspace, "forget_vqa", shard=f"{index}/3")
    assert unfinished_shards(workspace, "forget_vqa") == []
    workspace.saliency_dir("forget_vqa").rename(workspace.path("away"))
    assert unfinished_shards(workspace, "forget_vqa") == [Shard(3, 3)], "the last one adds up all of them"


def test_a_shard_of_a_part_that_is_there_in_another_way_is_refused_at_once(
    workspace: Workspace, benchmark: Fake, loads: list[Path]
) -> None:
    measure_parts(workspace, "forget_vqa")
    benchmark.data["forget_vqa"] = benchmark.data["forget_vqa"][:6]
    with pytest.raises(Mismatch, match="forget_vqa holds another measurement"):
        measure_parts(workspace, "forget_vqa", shard="2/2")
    assert len(loads) == 1


def test_the_same_shard_is_not_measured_twice_at_a_time(
    workspace: Workspace, watcher: Callable[..., Any], interrupted: type[Exception]
) -> None:
    """Another shard may be measured meanwhile."""
    outcomes: list[Any] = []

    class Second(watcher):  # type: ignore[misc, valid-type]
        def stage(self, what: str, total: int) -> Any:
            outcomes.append(measure_parts(workspace, "forget_vqa", shard="2/2")[0].up_to_date)
            with pytest.raises(MachineFault, match=r"shard-1-of-2 is being measured by another process"):
                measure_parts(workspace, "forget_vqa", shard="1/2")
            return super().stage(what, total)

    (result,) = measure_parts(workspace, "forget_vqa", shard="1/2", progress=Second())
    assert outcomes == [False]
    assert result.merged


def test_manifest_is_the_contract(workspace: Workspace) -> None:
    measure_parts(workspace, "forget_vqa", estimator="batch", batch_size=4)
    manifest = json.loads((workspace.saliency_dir("forget_vqa", "batch", 4) / "manifest.json").read_text())
    assert (manifest["part"], manifest["estimator"], manifest["batch_size"], manifest["units"]) == (
        "forget_vqa",
        "batch",
        4,
        2,
    )
    assert manifest["provenance"]["settings"] == {
        "part": "forget_vqa",
        "estimator": "batch",
        "batch_size": 4,
        "threads": 1,
        "store": "float32",
    }


def test_a_disk_without_room_is_noticed_before_the_model_is_loaded(
    workspace: Workspace, loads: list[Path], loaded_llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 3 * 4 * sum(parameter.numel() for parameter in loaded_llava.model.parameters())
    for free, refused in ((needed - 1, True), (needed, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        if refused:
            with pytest.raises(MachineFault, match=f"needs {needed:,} bytes"):
                measure_parts(workspace, "retain_qa")
            assert not loads
        else:
            assert not measure_parts(workspace, "retain_qa")[0].up_to_date
