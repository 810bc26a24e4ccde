"""A signal lets the step finish, keeps a snapshot, and the same command goes on from it."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.unlearn import loop
from mmsurgery_cli import main

APPLY = ("apply", "--method", "ga", "--from", "vanilla", "--epochs", "1", "--name")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.signal(number, main._interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_in_a_step_keeps_it(
    command: Callable[..., Any], portraits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = loop._clip, itertools.count()

    def signalled(*arguments: Any) -> float:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return clip(*arguments)

    monkeypatch.setattr(loop, "_clip", signalled)
    stopped = command(*APPLY, "stopped")
    assert stopped.code == 128 + signal.SIGTERM
    lines = stopped.err.strip().splitlines()
    assert lines[-2:] == [
        "stopping after this step; a second signal stops at once",
        "interrupted (SIGTERM) - next: run the same command again; it goes on where it stopped",
    ]
    assert not (portraits / "models/stopped").exists()
    went_on = command(*APPLY, "stopped")
    assert went_on.code == 0
    assert "going on after step 3" in went_on.err
    monkeypatch.setattr(loop, "_clip", clip)
    assert command(*APPLY, "whole").code == 0
    files = [portraits / "models" / name / "model.safetensors" for name in ("stopped", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_signal_elsewhere_claims_nothing(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("mmsurgery.unlearn.apply._say", signalled)
    stopped = command(*APPLY, "elsewhere")
    assert stopped.code == 128 + signal.SIGINT
    assert stopped.err.endswith(
        "interrupted (SIGINT) - next: run the same command again; parts that were finished are kept\n"
    )
