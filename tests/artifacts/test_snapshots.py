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
from mmsurgery.interruption import Interrupted, interrupt
from mmsurgery.workspace import SILENT

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0,), np.float32)}


def test_the_two_newest_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    made = tmp_path / "model"
    snapshots = Snapshots.of(made, "k" * 64, unit="sample")
    for done in (1, 2, 10):
        snapshots.save(done, {"done": done}, ARRAYS.items())
    assert sorted(path.name for path in snapshots.folder.iterdir()) == [
        "sample-00000002.safetensors",
        "sample-00000010.safetensors",
    ]
    notes = Notes()
    found = Snapshots.of(made, "k" * 64, unit="sample").load(notes)
    assert found is not None
    assert found[0] == {"done": 10}
    assert {name: array.tolist() for name, array in found[1].items()} == {k: v.tolist() for k, v in ARRAYS.items()}
    assert notes.texts == ["going on after sample 10"]
    Snapshots.discard_all(made)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["key", "versions"])
def test_those_of_another_run_are_removed(tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Snapshots(tmp_path / "s", "one").save(1, {}, ARRAYS.items())
    if other == "versions":
        monkeypatch.setattr(module, "versions", lambda: {"torch": "0"})
    notes = Notes()
    assert Snapshots(tmp_path / "s", "two" if other == "key" else "one").load(notes) is None
    assert notes.texts == ["an interrupted run had other settings, inputs or library versions: starting anew"]
    assert not (tmp_path / "s").exists()


def test_a_slow_disk_gets_fewer_snapshots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that takes 3 s is followed by another after 20 times that, not after the interval."""
    now = [100.0]

    def write(*_: Any) -> None:
        now[0] += 3.0

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "write_safetensors", write)
    snapshots = Snapshots(tmp_path, "key")
    for moment, expected in ((129.0, False), (130.0, True)):
        now[0] = moment
        assert snapshots.due() is expected
    snapshots.save(1, {}, [])
    for moment, expected in ((192.0, False), (193.0, True)):
        now[0] = moment
        assert snapshots.due() is expected


def test_a_signal_waits_for_a_snapshot(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, "key")
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
