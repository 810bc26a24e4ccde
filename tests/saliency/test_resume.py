"""A killed measurement goes on from its snapshots and ends with the same bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.loading import Loaded
from mmsurgery.data.samples import Sample
from mmsurgery.errors import Mismatch
from mmsurgery.saliency.measure import measure_saliency


@pytest.fixture(autouse=True)
def _snapshot_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapshots, "interval", 0.0)
    monkeypatch.setattr(Snapshots, "share", 0.0)


def saved(measured: SaliencyMap, folder: Path) -> dict[str, bytes]:
    """Every byte of the map as an artifact."""
    measured.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def killed(
    loaded_llava: Loaded,
    seven_samples: list[Sample],
    watcher: Callable[..., Any],
    interrupted: type[Exception],
    tmp_path: Path,
) -> Callable[..., Path]:
    """`killed(after, **options)`: the snapshot folder of a run that died after so many samples of seven."""

    def kill(after: int, **options: Any) -> Path:
        folder = tmp_path / "resume"
        with pytest.raises(interrupted):
            measure_saliency(
                loaded_llava,
                seven_samples,
                progress=watcher(after),
                resume_folder=folder,
                **{"batch_size": 2, **options},
            )
        return folder

    return kill


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_the_bytes_are_those_of_an_undisturbed_run(
    loaded_llava: Loaded,
    seven_samples: list[Sample],
    watcher: Callable[..., Any],
    killed: Callable[..., Path],
    tmp_path: Path,
    estimator: str,
) -> None:
    """Killed after two samples, and again after six."""
    options: dict[str, Any] = {"estimator": estimator, "batch_size": 2, "part": "retain_vqa"}
    undisturbed = saved(measure_saliency(loaded_llava, seven_samples, **options), tmp_path / "undisturbed")
    killed(2, **options)
    folder = killed(6, **options)
    progress = watcher()
    resumed = measure_saliency(loaded_llava, seven_samples, progress=progress, resume_folder=folder, **options)
    assert progress.steps == [6, 1]
    assert "going on after sample 6" in progress.notes
    assert saved(resumed, tmp_path / "resumed") == undisturbed


def test_a_run_that_goes_sample_by_sample_goes_on_so(
    llava64: Loaded,
    seven_samples: list[Sample],
    watcher: Callable[..., Any],
    interrupted: type[Exception],
    tmp_path: Path,
) -> None:
    head = llava64.model.lm_head
    plain = head.forward
    head.forward = lambda states: plain(states)
    with pytest.raises(interrupted):
        measure_saliency(llava64, seven_samples, progress=watcher(3), resume_folder=tmp_path / "resume")
    progress = watcher()
    resumed = measure_saliency(llava64, seven_samples, progress=progress, resume_folder=tmp_path / "resume")
    assert progress.steps == [3, 1, 1, 1, 1]
    assert resumed.provenance["path"] == "batch-1"
    undisturbed = measure_saliency(llava64, seven_samples)
    assert all((resumed.arrays[name] == array).all() for name, array in undisturbed.arrays.items())


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_snapshot_gives_way_to_the_one_before(
    loaded_llava: Loaded,
    seven_samples: list[Sample],
    watcher: Callable[..., Any],
    killed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    undisturbed = saved(measure_saliency(loaded_llava, seven_samples, batch_size=2), tmp_path / "undisturbed")
    folder = killed(6)
    snapshots = sorted(folder.iterdir())
    assert [path.name for path in snapshots] == ["sample-00000004.safetensors", "sample-00000006.safetensors"]
    damage(snapshots[1])
    progress = watcher()
    resumed = measure_saliency(loaded_llava, seven_samples, batch_size=2, progress=progress, resume_folder=folder)
    assert progress.steps == [4, 2, 1]
    assert "sample-00000006.safetensors is damaged" in progress.notes[0]
    assert saved(resumed, tmp_path / "resumed") == undisturbed


@pytest.mark.parametrize("cut", [0, 5, 1000])
def test_without_a_whole_snapshot_it_starts_anew(
    loaded_llava: Loaded,
    seven_samples: list[Sample],
    watcher: Callable[..., Any],
    killed: Callable[..., Path],
    cut: int,
) -> None:
    folder = killed(6)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:cut])
    progress = watcher()
    measure_saliency(loaded_llava, seven_samples, batch_size=2, progress=progress, resume_folder=folder)
    assert progress.steps == [0, 2, 2, 2, 1]
    assert len(progress.notes) == 2


@pytest.mark.parametrize("change", ["batch_size", "estimator", "samples", "template", "versions"])
def test_another_measurement_is_refused_with_what_changed(
    loaded_llava: Loaded,
    seven_samples: list[Sample],
    watcher: Callable[..., Any],
    killed: Callable[..., Path],
    changed_backbone: Callable[..., Loaded],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """Case 66; forced, it begins anew with a word."""
    folder = killed(4)
    loaded, samples, options = loaded_llava, seven_samples, {"batch_size": 2, "estimator": "sample"}
    if change == "batch_size":
        options["batch_size"] = 4
    elif change == "estimator":
        options["estimator"] = "dataset"
    elif change == "samples":
        samples = [*seven_samples[:6], seven_samples[0]]
    elif change == "template":
        loaded = changed_backbone(loaded, template_digest=lambda processor: "t" * 64)
    else:
        monkeypatch.setattr("mmsurgery.provenance.versions", lambda: {"torch": "0"})
    said = {
        "batch_size": "batch_size 2 -> 4",
        "estimator": "estimator sample -> dataset",
        "samples": "data_sha256 .* -> .*, measured_sha256 .* -> ",
        "template": "template_sha256 .* -> tttttttttttt",
        "versions": "torch .* -> 0",
    }[change]
    progress = watcher()
    run: Any = functools.partial(measure_saliency, loaded, samples, progress=progress, resume_folder=folder, **options)
    with pytest.raises(Mismatch, match=f"holds an interrupted run with other .*{said}"):
        run()
    assert progress.steps == []
    measured = run(force=True)
    assert progress.steps[0] == 0
    assert progress.notes[0].endswith(": beginning anew")
    fresh = measure_saliency(loaded, samples, **options)  # type: ignore[arg-type]
    assert all((measured.arrays[name] == array).all() for name, array in fresh.arrays.items())


def test_snapshots_wait_for_their_interval(
    loaded_llava: Loaded,
    seven_samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Snapshots, "interval", 1000.0)
    measure_saliency(loaded_llava, seven_samples, batch_size=1, resume_folder=tmp_path / "resume")
    assert not (tmp_path / "resume").exists()
