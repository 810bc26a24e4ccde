"""The columns that an interrupted run has finished: `.scoring/MODEL/KEY/` below the folder of its scores."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.errors import InputRefused
from mmsurgery.evaluate import records
from mmsurgery.evaluate.open_answers import Written
from mmsurgery.provenance import sha256_json

UNFINISHED = ".scoring"


@dataclass(frozen=True)
class Unfinished:
    """What was scored of one model with the very inputs that a key stands for."""

    folder: Path

    @classmethod
    def of(cls, scores: Path, model: str, key: str) -> Unfinished:
        """Beside the scores that they become; what other inputs left is removed."""
        folder = scores.parent / UNFINISHED / model / key[:16]
        for stale in folder.parent.glob("*"):
            if stale != folder:
                shutil.rmtree(stale, ignore_errors=True)
        return cls(folder)

    def scores(self, column: str) -> list[Any] | None:
        """The scored items of a column; None if it is not finished, or damaged."""
        return _read(self.folder / f"{column}.json", lambda entry, where: records.from_line(entry, where))

    def keep_scores(self, column: str, items: Sequence[Any]) -> None:
        _write(self.folder / f"{column}.json", [records.line(item) for item in items])

    def written(self, column: str) -> list[Written] | None:
        """What was written and is not judged yet; None if there is none, or damaged."""
        return _read(self.folder / f"{column}.written.json", lambda entry, _: Written(*map(str, entry)))

    def keep_written(self, column: str, answers: Sequence[Written]) -> None:
        _write(self.folder / f"{column}.written.json", [[each.prompt_sha256, each.text] for each in answers])

    def remove(self) -> None:
        """Remove what became a model's scores."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        with contextlib.suppress(OSError):  # another model's columns may be in it
            self.folder.parent.parent.rmdir()


def _read(file: Path, entry: Callable[[Any, str], Any]) -> list[Any] | None:
    """Its entries, if they are whole."""
    if not file.exists():
        return None
    try:
        value = read_json(file)
        if value["sha256"] != sha256_json(value["lines"]):
            raise InputRefused(f"{file} is damaged")
        return [entry(each, str(file)) for each in value["lines"]]
    except (InputRefused, KeyError, TypeError):
        file.unlink()
        return None


def _write(file: Path, lines: list[Any]) -> None:
    write_json(file, {"lines": lines, "sha256": sha256_json(lines)})
