"""Two commands on the same level: the second waits for the first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from mmsurgery import workspace as folders
from mmsurgery.errors import MachineFault
from mmsurgery.experiments.waiting import PatientWorkspace
from mmsurgery.settings import Settings
from mmsurgery.workspace import InUse


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[filelock.FileLock]:
    monkeypatch.setattr(folders, "LOCK_TIMEOUT", 0.01)
    lock = filelock.FileLock(tmp_path / ".lock")
    with lock:
        yield lock


def test_another_process_is_waited_for_and_named_once(held: filelock.FileLock, tmp_path: Path) -> None:
    (tmp_path / ".lock.holder").write_text("pid 1 on host here since 22:10")
    told: list[str] = []
    workspace = PatientWorkspace(tmp_path, Settings(), told.append)
    acquire, tries = filelock.FileLock.acquire, []

    def third_time(lock: filelock.FileLock, **kwargs: float) -> object:
        tries.append(1)
        if len(tries) == 3:
            held.release()
        return acquire(lock, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filelock.FileLock, "acquire", third_time)
        with workspace.lock():
            assert len(tries) == 3
    assert told == [
        f"{tmp_path} is in use by pid 1 on host here since 22:10: waiting, what it has made by then is found"
    ]
    with workspace.lock():  # it is free again
        pass


def test_a_process_does_not_wait_for_itself(held: filelock.FileLock, tmp_path: Path) -> None:
    (tmp_path / ".lock.holder").write_text(f"pid {os.getpid()} on host here since 22:10")
    workspace = PatientWorkspace(tmp_path, Settings(), pytest.fail)
    with pytest.raises(MachineFault, match="in use"), workspace.lock():
        pass


def test_what_cannot_be_locked_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    workspace = PatientWorkspace(tmp_path, Settings(), pytest.fail)
    with pytest.raises(MachineFault, match="cannot write"), workspace.lock():
        pass


def test_a_fault_inside_the_lock_goes_up(tmp_path: Path) -> None:
    workspace = PatientWorkspace(tmp_path, Settings(), pytest.fail)
    fault = InUse(tmp_path, "pid 7 elsewhere", 7)
    with pytest.raises(MachineFault) as caught, workspace.lock():
        raise fault
    assert caught.value is fault
