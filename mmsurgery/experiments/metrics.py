"""Metrics of long grids: one JSON line per event, and numbers to trackers by name.

The file is for people and their programs, no digest covers it: its lines carry the time.
"""

from __future__ import annotations

import datetime
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import machine_fault, read_bytes
from mmsurgery.errors import InputRefused, MissingArtifact
from mmsurgery.experiments.trackers import Trackers
from mmsurgery.provenance import canonical_json, parse_json

METRICS = "metrics.jsonl"

TRACKERS = "trackers"
"""Folder beside the file, for trackers that write files."""


def _ignore(text: str) -> None:
    return


class Metrics:
    """Appends to a file of metrics and tells trackers.

    Only one process at a time may append to a file. An earlier run's lines are kept; a last line that a kill
    tore is dropped.

    Args:
        path: file of JSON lines; made with its folder if it is not there.
        trackers: names as accelerate knows them, see `trackers.Trackers`.
        run: the run's name for trackers.
        settings: the run's settings for trackers.
        note: told when a tracker fails; it is not used any more then.

    Raises:
        UsageError: for a tracker that is unknown, not installed, or does not start; the file is untouched then.
        MachineFault: if the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        trackers: Sequence[str],
        run: str,
        settings: Mapping[str, Any],
        note: Callable[[str], None] = _ignore,
    ) -> None:
        self._path = path
        self._trackers = Trackers(trackers, run, path.parent / TRACKERS, settings, note)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            _drop_torn(self._file)
        except OSError as error:
            self._trackers.close()
            raise machine_fault(error, path) from error

    def log(self, event: str, **values: Any) -> None:
        """Append one line, `event` and `at` (local time in ISO 8601) among its keys, and flush it to the disk.

        Numbers among the values go to the trackers as `ROW/LEVEL/NAME` at `step`, as far as `row`, `level` and
        `step` are among the values. What is no finite number is null in the line, and no tracker gets it.

        Raises:
            MachineFault: if the line cannot be written.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        at = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        line = canonical_json({**plain, "event": event, "at": at}) + b"\n"
        try:
            # one write: a kill leaves the line whole or not at all, only a full disk or a dead machine tears it
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except OSError as error:
            raise machine_fault(error, self._path) from error
        place = "/".join(str(plain[name]) for name in ("row", "level") if plain.get(name) is not None)
        step = plain.get("step")
        self._trackers.log(
            place,
            {
                name: value
                for name, value in plain.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "level")
            },
            round(step) if isinstance(step, int | float) else None,
        )

    def begin(self, command: str) -> None:
        """Note what was asked for, unless it is the same as last time."""
        if begun_by(self._path) != command:
            self.log("begin", command=command)

    def earlier(self) -> list[dict[str, Any]]:
        """What was logged so far, of earlier runs too; nothing where a line cannot be read."""
        try:
            return read_metrics(self._path)
        except InputRefused:
            return []

    def close(self) -> None:
        """Finish the trackers' runs and close the file."""
        self._trackers.close()
        os.close(self._file)


def _plain(value: Any) -> Any:
    """Plain JSON of a value; null for a number that is none."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _drop_torn(file: int) -> None:
    """Cut off what stands after the last line break."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    os.ftruncate(file, end)


def begun_by(path: Path) -> str | None:
    """The command that an experiment was last run by, as its metrics tell it; None where they do not."""
    try:
        told = [entry.get("command") for entry in read_metrics(path) if entry.get("event") == "begin"]
    except (InputRefused, MissingArtifact):
        return None
    return str(told[-1]) if told else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics, in order; a torn last one is left out.

    Raises:
        MissingArtifact: if there is no file.
        InputRefused: for a line that is no JSON object, naming it.
    """
    if not path.exists():
        raise MissingArtifact(f"{path} does not exist", f"mmsurgery experiment {path.parent.name}")
    lines = read_bytes(path).split(b"\n")[:-1] if path.stat().st_size else []
    found = []
    for number, line in enumerate(lines, start=1):
        entry = parse_json(line, f"{path}:{number}")
        if not isinstance(entry, dict):
            raise InputRefused(f"{path}:{number} is not a JSON object", "take the line out")
        found.append(entry)
    return found
