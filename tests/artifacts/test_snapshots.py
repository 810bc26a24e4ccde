"""Snapshots: two generations, a bounded share of the time, and a signal that waits for one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from notes import Notes

from mmsurgery import interruption
from mmsurgery.artifacts import snapshots as module
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.artifacts.tensors import write_safetensors
from mmsurgery.errors import Mismatch
from mmsurgery.interruption import Interrupted, interrupt
from mmsurgery.provenance import provenance
from mmsurgery.workspace import SILENT

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0,), np.float32)}


def origin(**settings: Any) -> dict[str, Any]:
    return provenance("test", settings, {})


def test_the_two_newest_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    made = tmp_path / "model"
    snapshots = Snapshots(Snapshots.folder_of(made), origin(), unit="sample")
    for done in (1, 2, 10):
        snapshots.save(done, {"done": done}, ARRAYS.items())
    assert sorted(path.name for path in snapshots.folder.iterdir()) == [
        "sample-00000002.safetensors",
        "sample-00000010.safetensors",
    ]
    notes = Notes()
    found = Snapshots(snapshots.folder, origin(), unit="sample").load(notes)
    assert found is not None
    assert found[0] == {"done": 10}
    assert {name: array.tolist() for name, array in found[1].items()} == {k: v.tolist() for k, v in ARRAYS.items()}
    assert notes.texts == ["going on after sample 10"]
    other = Snapshots(Snapshots.folder_of(tmp_path / "model-2"), origin())
    other.save(1, {}, [])
    Snapshots.discard_of(made)
    assert list(tmp_path.iterdir()) == [other.folder]  # what begins with the same name is not the same


@pytest.mark.parametrize("read", [Snapshots.check, Snapshots.load])
@pytest.mark.parametrize("other", ["settings", "versions", "no snapshot of this version"])
def test_those_of_another_run_are_refused(tmp_path: Path, other: str, read: Any) -> None:
    """Case 66; forced, they are removed with a word."""
    there, here = origin(epochs=2, seed=0), origin(epochs=3, seed=0)
    if other == "versions":
        here = {**there, "versions": {**there["versions"], "torch": "0"}}
    folder, notes = tmp_path / "s", Notes()
    Snapshots(folder, there).save(1, {}, ARRAYS.items())
    said = "epochs 2 -> 3" if other == "settings" else f"torch {there['versions']['torch']} -> 0"
    if other.startswith("no"):
        write_safetensors(folder / "step-00000001.safetensors", {}, {"state": '{"state":{},"key":"0"}'})
        read(Snapshots(folder, here), notes)
        said = "snapshot step-00000001.safetensors is damaged and left out"  # by `load`
        assert [text.partition(" (")[0] for text in notes.texts] == [said] * (read is Snapshots.load)
        return
    with pytest.raises(Mismatch) as caught:
        read(Snapshots(folder, here), notes)
    assert caught.value.what == f"{folder} holds an interrupted run with other {said}"
    assert notes.texts == []
    assert not read(Snapshots(folder, here, force=True), notes)
    assert notes.texts == [f"{caught.value.what}: beginning anew"]
    assert not folder.exists()


def test_a_slow_disk_gets_fewer_snapshots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that takes 3 s is followed by another after 20 times that, not after the interval."""
    now = [100.0]

    def write(*_: Any) -> None:
        now[0] += 3.0

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "write_safetensors", write)
    snapshots = Snapshots(tmp_path, origin())
    for moment, expected in ((129.0, False), (130.0, True)):
        now[0] = moment
        assert snapshots.due() is expected
    snapshots.save(1, {}, [])
    for moment, expected in ((192.0, False), (193.0, True)):
        now[0] = moment
        assert snapshots.due() is expected


def test_a_signal_waits_for_a_snapshot(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, origin())
    steps = []

    def loop() -> None:
        with snapshots.taking():
            for step in range(1, 5):
                if step == 2:
                    interrupt(signal.SIGTERM)
                steps.append(step)
                if snapshots.due():
                    snapshots.save(step, {"step": step}, [])

    with pytest.raises(Interrupted) as caught:
        loop()
    assert steps == [1, 2]
    assert (caught.value.number, caught.value.saved) == (signal.SIGTERM, True)
    found = snapshots.load(SILENT)
    assert found is not None
    assert found[0] == {"step": 2}
    assert not snapshots.due()  # it is obeyed once


def test_without_a_snapshot_to_come_it_is_obeyed_at_once_or_at_the_end() -> None:
    with pytest.raises(Interrupted) as caught:
        interrupt(signal.SIGINT)
    assert not caught.value.saved
    with pytest.raises(Interrupted, match=str(int(signal.SIGINT))) as caught, interruption.deferred():
        interrupt(signal.SIGINT)
    assert not caught.value.saved
    assert not interruption.asked()


def test_a_fault_meanwhile_wins_and_the_signal_is_forgotten() -> None:
    def loop() -> None:
        with interruption.deferred():
            interrupt(signal.SIGINT)
            raise ValueError("fault")

    with pytest.raises(ValueError, match="fault"):
        loop()
    assert not interruption.asked()
    with interruption.deferred():
        pass
