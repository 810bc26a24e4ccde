"""Snapshots of a long computation, so that a killed or stopped one goes on and ends with the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery import interruption
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact
from mmsurgery.provenance import canonical_json, check_same_run, parse_json

if TYPE_CHECKING:
    from mmsurgery.workspace import Progress

Arrays = dict[str, np.ndarray[Any, Any]]

GENERATIONS = 2
BEGIN_ANEW = "repeat that one as it was; --force, or removing it, begins anew"


class Snapshots:
    """The two newest snapshots of one computation: how far it is, a state as plain JSON, and arrays.

    Args:
        folder: theirs alone.
        origin: provenance of what is computed; the snapshots of another one are refused.
        unit: what is counted: `step`, `sample`.
        force: they are removed instead.

    Raises:
        InputRefused: if the folder is a link.
    """

    interval = 30.0
    """Least seconds between two snapshots."""
    share = 20.0
    """A snapshot is not taken before this many times its predecessor's duration has passed: at most 5 % of
    the time."""

    def __init__(self, folder: Path, origin: Mapping[str, Any], *, unit: str = "step", force: bool = False) -> None:
        self.folder, self.unit, self.force = folder, unit, force
        self._origin = {part: origin[part] for part in ("settings", "inputs", "versions", "key")}
        self._next = time.monotonic() + self.interval
        if folder.is_symlink():
            raise InputRefused(f"{folder} is a link, and what is behind it is not ours to remove", "remove the link")

    @staticmethod
    def folder_of(made: Path) -> Path:
        """Where the snapshots of the run that makes `made` lie."""
        return made.with_name(f".resume-{made.name}")

    @classmethod
    def discard_of(cls, made: Path) -> None:
        """Remove the snapshots of the run that was to make `made`: it is made."""
        shutil.rmtree(cls.folder_of(made), ignore_errors=True)

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Around a loop that asks `due` after each unit: a signal to stop waits for its next snapshot."""
        with interruption.deferred():
            yield

    def due(self) -> bool:
        """Whether it is time for a snapshot, or one is needed to stop."""
        return interruption.asked() or time.monotonic() >= self._next

    def save(self, done: int, state: Mapping[str, Any], arrays: Iterable[tuple[str, np.ndarray[Any, Any]]]) -> None:
        """Write a snapshot atomically and remove all but the two newest; then stop, if a signal asked for it.

        Args:
            done: units done.

        Raises:
            MachineFault: if it cannot be written.
            Interrupted: after it is written.
        """
        begun = time.monotonic()
        tensors = dict(arrays)
        text = canonical_json({"state": dict(state), "origin": self._origin}).decode()
        path = self.folder / f"{self.unit}-{done:08d}.safetensors"
        write_safetensors(path, tensors, {"state": text, "sha256": _digest(text, tensors)})
        for old in self._newest()[GENERATIONS:]:
            old.unlink(missing_ok=True)
        self._next = time.monotonic() + max(self.interval, self.share * (time.monotonic() - begun))
        interruption.stop_if_asked()

    def check(self, progress: Progress) -> None:
        """Check that the snapshots that are there are of this computation, before it takes time; no array is read.

        Raises:
            Mismatch: naming the settings, inputs and versions in which an interrupted run differs, unless it is to
                be removed.
        """
        for path in self._newest():
            try:
                value = _parsed(read_header(path).metadata.get("state", ""), path)
            except (InputRefused, MissingArtifact):
                continue  # `load` says so
            try:
                check_same_run(value["origin"], self._origin, self.folder, BEGIN_ANEW)
            except Mismatch as error:
                if not self.force:
                    raise
                progress.note(f"{error.what}: beginning anew")
                self.discard()
                return

    def load(self, progress: Progress) -> tuple[dict[str, Any], Arrays] | None:
        """State and arrays of the newest whole snapshot, or None; says so where a newer one is left out.

        Raises:
            as `check`.
        """
        self.check(progress)
        for path in self._newest():
            try:
                state, arrays = _read(path)
            except (InputRefused, MissingArtifact) as error:
                progress.note(f"snapshot {path.name} is damaged and left out ({error.what})")
                path.unlink(missing_ok=True)
                continue
            progress.note(f"going on after {self.unit} {int(path.stem.rpartition('-')[2])}")
            return state, arrays
        self.discard()
        return None

    def discard(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.unit}-*.safetensors"), reverse=True)


def _parsed(text: str, path: Path) -> Any:
    value = parse_json(text.encode(), path.name)
    if not isinstance(value, dict) or not all(isinstance(value.get(key), dict) for key in ("state", "origin")):
        raise InputRefused("it is no snapshot of this version")
    return value


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    header = read_header(path)
    arrays = {name: read_tensor(path, info).copy() for name, info in header.tensors.items()}
    text = header.metadata.get("state", "")
    if header.metadata.get("sha256") != _digest(text, arrays):
        raise InputRefused("its content digest differs")
    return _parsed(text, path)["state"], arrays


def _digest(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
