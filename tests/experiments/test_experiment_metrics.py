"""Metrics as JSON lines: what is logged is read back, a kill loses a line at most, trackers cannot end a run."""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.errors import InputRefused, MachineFault, MissingArtifact, UsageError
from mmsurgery.experiments.metrics import METRICS, TRACKERS, Metrics, begun_by, read_metrics


def opened(path: Path, *trackers: str, note: Callable[[str], None] = print) -> Metrics:
    return Metrics(path, trackers, "table1", {"seeds": 3, "recipe": {"lr": 0.1, "steps": None}, "rows": ["ga"]}, note)


def without_time(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "at"} for line in read_metrics(path)]


def test_lines_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "grid" / "metrics.jsonl"
    metrics = opened(path)
    before = datetime.datetime.now().astimezone() - datetime.timedelta(milliseconds=1)
    metrics.log("evaluated", level="llava.0", row="ga", step=8, forget_vqa=0.25, n=np.int64(3), share=np.float32(0.5))
    metrics.log("done", row="ga", seconds=math.nan, why=None, of={"a": [1, math.inf]}, path=tmp_path)
    metrics.close()
    assert without_time(path) == [
        {"event": "evaluated", "level": "llava.0", "row": "ga", "step": 8, "forget_vqa": 0.25, "n": 3, "share": 0.5},
        {"event": "done", "row": "ga", "seconds": None, "why": None, "of": {"a": [1, None]}, "path": str(tmp_path)},
    ]
    first, second = (datetime.datetime.fromisoformat(line["at"]) for line in read_metrics(path))
    assert before <= first <= second <= datetime.datetime.now().astimezone()
    raw = path.read_bytes().splitlines(keepends=True)
    assert raw[0] == json.dumps(json.loads(raw[0]), sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize("torn", [b'{"event":"b', b'{"event":"b"}', b"\xff", b'{"x":"' + b"y" * 200_000])
def test_a_torn_last_line_is_dropped(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event":"a"}\n' + torn)
    assert read_metrics(path) == [{"event": "a"}]
    metrics = opened(path)
    metrics.log("c")
    metrics.close()
    assert [line["event"] for line in read_metrics(path)] == ["a", "c"]


def test_a_torn_only_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event":"b')
    opened(path).close()
    assert read_metrics(path) == []


def test_a_kill_loses_nothing_that_was_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, sys; from pathlib import Path; from mmsurgery.experiments.metrics import Metrics\n"
        "m = Metrics(Path(sys.argv[1]), (), 'r', {}); m.log('a', x=1); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -9
    assert without_time(path) == [{"event": "a", "x": 1}]


def test_every_line_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    path = tmp_path / "metrics.jsonl"
    metrics = opened(path)
    metrics.log("a")
    metrics.log("b")
    metrics.close()
    first = path.read_bytes().index(b"\n") + 1
    assert sizes == [first, path.stat().st_size]


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "table1" / "metrics.jsonl"
    with pytest.raises(MissingArtifact, match=r"metrics\.jsonl does not exist - next: mmsurgery experiment table1"):
        read_metrics(path)
    path.mkdir(parents=True)
    with pytest.raises(MachineFault, match="cannot write"):
        opened(path)
    path.rmdir()
    for line, what in (("[1]", ":2 is not a JSON object"), ('{"a":', ":2 is not valid JSON")):
        path.write_text(f'{{"event":"a"}}\n{line}\n{{"event":"c"}}\n')
        with pytest.raises(InputRefused, match=what):
            read_metrics(path)


def test_a_full_disk_is_a_fault_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    metrics = opened(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(MachineFault, match="No space left"):
        metrics.log("a")
    metrics.close()


# trackers


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What a tracker `notebook` was told; it fails where `failing` names the method."""
    from accelerate import PartialState
    from accelerate.logging import get_logger
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

    calls: list[tuple[Any, ...]] = []

    class Notebook(GeneralTracker):  # type: ignore[misc]
        name = "notebook"
        requires_logging_directory = True
        failing = ""

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()
            self._tell("init", run_name, logging_dir)

        @property
        def tracker(self) -> None:
            return None

        def _tell(self, what: str, *values: Any) -> None:
            calls.append((what, *values))
            if what == self.failing:
                raise RuntimeError("no connection")

        def start(self) -> None:
            get_logger(__name__).debug("refuses to work before accelerate's state is there, as the real trackers do")
            self._tell("start")

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self._tell("settings", values)

        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            self._tell("log", values, step)

        def finish(self) -> None:
            self._tell("finish")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Notebook)
    yield calls
    PartialState._reset_state()


def failing(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["notebook"], "failing", what)


def test_numbers_go_to_trackers(tmp_path: Path, told: list[tuple[Any, ...]]) -> None:
    metrics = opened(tmp_path / "metrics.jsonl", "notebook", "notebook")
    metrics.log("evaluated", level="llava.0", row="ga", step=8, forget_vqa=0.25, n=3, ok=True, who="x", bad=math.nan)
    metrics.log("done", row="ga", seconds=2.5)
    metrics.log("note", what="nothing to draw")
    metrics.close()
    assert told == [
        ("init", "table1", str(tmp_path / TRACKERS)),
        ("start",),
        ("settings", {"seeds": 3, "recipe.lr": 0.1, "recipe.steps": "null", "rows": '["ga"]'}),
        ("log", {"ga/llava.0/forget_vqa": 0.25, "ga/llava.0/n": 3}, 8),
        ("log", {"ga/seconds": 2.5}, None),
        ("finish",),
    ]
    assert (tmp_path / TRACKERS).is_dir()


def test_a_tracker_with_one_clock_gets_the_step_as_a_number(
    tmp_path: Path, told: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb"])
    metrics = opened(tmp_path / "metrics.jsonl", "wandb")
    metrics.log("evaluated", level="llava.0", row="ga", step=8, utility=0.25)
    metrics.close()
    assert ("log", {"ga/llava.0/utility": 0.25, "ga/llava.0/step": 8}, None) in told


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tracker 'tensorbord' - next: did you mean 'tensorboard'"):
        opened(tmp_path / "metrics.jsonl", "tensorbord")
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(UsageError, match="tracker 'aim' needs the package aim<4 - next: pip install"):
        opened(tmp_path / "metrics.jsonl", "aim")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["init", "start", "settings"])
def test_a_tracker_that_does_not_start_is_refused(
    what: str, tmp_path: Path, told: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, what)
    with pytest.raises(UsageError, match="tracker 'notebook' does not start: no connection"):
        opened(tmp_path / "metrics.jsonl", "notebook")
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("what", ["log", "finish"])
def test_a_failing_tracker_is_told_once_and_switched_off(
    what: str, tmp_path: Path, told: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, what)
    notes: list[str] = []
    metrics = opened(tmp_path / "metrics.jsonl", "notebook", note=notes.append)
    metrics.log("a", x=1)
    metrics.log("b", x=2)
    metrics.close()
    assert notes == ["tracker 'notebook' failed and is switched off: no connection"]
    assert [entry[0] for entry in told].count(what) == 1
    assert [line["event"] for line in read_metrics(tmp_path / "metrics.jsonl")] == ["a", "b"]


def test_nothing_is_imported_without_trackers(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mmsurgery.experiments.metrics import Metrics\n"
        "m = Metrics(Path(sys.argv[1]), (), 'r', {}); m.log('a', x=1); m.close()\n"
        "assert not {'accelerate', 'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "metrics.jsonl"], check=True)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_draws_them(tmp_path: Path) -> None:
    from accelerate import PartialState
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-not-found]

    metrics = opened(tmp_path / "metrics.jsonl", "tensorboard")
    for step in (0, 8):
        metrics.log("evaluated", level="llava.0", row="ga", step=step, utility=0.5 + step)
    metrics.close()
    PartialState._reset_state()
    events = EventAccumulator(str(tmp_path / TRACKERS / "table1"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("ga/llava.0/utility")] == [(0, 0.5), (8, 8.5)]


def test_what_was_asked_for_is_noted_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    assert begun_by(path) is None
    for command in ("mmsurgery experiment table1", "mmsurgery experiment table1", "mmsurgery experiment table1 --tune"):
        metrics = Metrics(path, (), "table1", {}, lambda text: None)
        metrics.begin(command)
        metrics.close()
    assert [entry["command"] for entry in read_metrics(path)] == [
        "mmsurgery experiment table1",
        "mmsurgery experiment table1 --tune",
    ]
    assert begun_by(path) == "mmsurgery experiment table1 --tune"
