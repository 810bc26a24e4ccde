"""The columns that an interrupted run has finished: `.scoring/MODEL/` below the folder of its scores."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact
from mmsurgery.evaluate import records
from mmsurgery.evaluate.open_answers import Written
from mmsurgery.provenance import SCHEMA, check_same_run, check_seal, seal, sha256_json

UNFINISHED = ".scoring"
_ORIGIN, _KIND = "origin.json", "unfinished scores"


@dataclass(frozen=True)
class Unfinished:
    """What was scored of one model with the very settings, inputs and library versions of one provenance."""

    folder: Path
    note: Callable[[str], None]
    """Told what is left out."""

    def begin(self, origin: Mapping[str, Any], again: str, *, force: bool) -> None:
        """Go on with what is there, or begin.

        Args:
            again: the command that begins anew.
            force: what another run left is removed.

        Raises:
            Mismatch: naming the settings, inputs and versions in which an interrupted run differs.
            InputRefused: if the folder is a link.
            MachineFault: if it cannot be written.
        """
        origin = {part: origin[part] for part in ("settings", "inputs", "versions", "key")}
        file = self.folder / _ORIGIN
        if link := next((each for each in (self.folder, self.folder.parent) if each.is_symlink()), None):
            raise InputRefused(f"{link} is a link, and what is behind it is not ours to remove", "remove the link")
        if self.folder.exists():
            try:
                there = check_seal(read_json(file), str(file), kind=_KIND)["provenance"]
                check_same_run(there, origin, self.folder, again)
                return
            except (InputRefused, MissingArtifact) as error:
                self.note(f"{error.what}: scoring anew")
            except Mismatch as error:
                if not force:
                    raise
                self.note(f"{error.what}: scoring anew")
            self.remove()
        write_json(file, seal({"schema": SCHEMA, "kind": _KIND, "provenance": origin}))

    def scores(self, column: str) -> list[Any] | None:
        """The scored items of a column; None if it is not finished, or damaged."""
        return self._read(f"{column}.json", lambda entry, where: records.from_line(entry, where))

    def keep_scores(self, column: str, items: Sequence[Any]) -> None:
        _write(self.folder / f"{column}.json", [records.line(item) for item in items])

    def written(self, column: str) -> list[Written] | None:
        """What was written and is not judged yet; None if there is none, or damaged."""
        return self._read(f"{column}.written.json", lambda entry, _: Written(*map(str, entry)))

    def keep_written(self, column: str, answers: Sequence[Written]) -> None:
        _write(self.folder / f"{column}.written.json", [[each.prompt_sha256, each.text] for each in answers])

    def remove(self) -> None:
        """Remove what became a model's scores."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another model's columns may be in it
            self.folder.parent.rmdir()

    def _read(self, name: str, entry: Callable[[Any, str], Any]) -> list[Any] | None:
        """A file's entries, if they are whole."""
        file = self.folder / name
        if not file.exists():
            return None
        try:
            value = read_json(file)
            if value["sha256"] == sha256_json(value["lines"]):
                return [entry(each, str(file)) for each in value["lines"]]
        except (InputRefused, KeyError, TypeError):
            pass
        self.note(f"{file} is damaged and left out")
        file.unlink()
        return None


def _write(file: Path, lines: list[Any]) -> None:
    write_json(file, {"lines": lines, "sha256": sha256_json(lines)})
