"""What a measurement depends on, and its snapshots: a killed one goes on and ends with the same bytes."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.errors import InputRefused, MissingArtifact
from mmsurgery.provenance import canonical_json, parse_json
from mmsurgery.workspace import Progress

Array = np.ndarray[Any, np.dtype[Any]]

INTERVAL = 30.0
"""Least seconds between two snapshots."""
SHARE = 20.0
"""A snapshot is not taken before this many times its predecessor's duration has passed: at most 5 % of the time."""
GENERATIONS = 2


def settings(part: str, estimator: str, batch_size: int, threads: int) -> dict[str, Any]:
    """What a saliency map's sums depend on beside model and data; the batch size only for `batch`,
    since the other estimators are the same at any."""
    return {
        "part": part,
        "estimator": estimator,
        "batch_size": batch_size if estimator == "batch" else None,
        "threads": threads,
    }


@dataclass(frozen=True)
class State:
    """How far a measurement is, beside its sums."""

    samples: int = 0
    """Samples done, in their order."""
    supervised_tokens: int = 0
    path: str = "hooks"


class Snapshots:
    """The two newest snapshots of one measurement.

    Args:
        folder: theirs alone.
        key: digest of all that the sums depend on; snapshots of another key are removed.
    """

    def __init__(self, folder: Path, key: str, progress: Progress) -> None:
        self.folder, self.key, self.progress = folder, key, progress
        self._next = time.monotonic() + INTERVAL

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def save(self, state: State, arrays: Iterable[tuple[str, Array]]) -> None:
        """Write a snapshot atomically; all but the two newest are removed.

        Raises:
            MachineFault: if it cannot be written.
        """
        begun = time.monotonic()
        tensors = dict(arrays)
        text = canonical_json({**asdict(state), "key": self.key}).decode()
        path = self.folder / f"samples-{state.samples:09d}.safetensors"
        write_safetensors(path, tensors, {"state": text, "sha256": _digest(text, tensors)})
        for old in self._newest()[GENERATIONS:]:
            old.unlink()
        self._next = time.monotonic() + max(INTERVAL, SHARE * (time.monotonic() - begun))

    def load(self) -> tuple[State, dict[str, Array]] | None:
        """The newest whole snapshot, or None; says so where a newer one is left out."""
        for path in self._newest():
            try:
                key, state, arrays = _read(path)
            except (InputRefused, MissingArtifact) as error:
                self.progress.note(f"snapshot {path.name} is damaged and left out ({error.what})")
                path.unlink()
                continue
            if key != self.key:
                self.progress.note("an interrupted measurement had other settings or inputs: starting anew")
                break
            self.progress.note(f"going on after sample {state.samples}")
            return state, arrays
        discard(self.folder)
        return None

    def _newest(self) -> list[Path]:
        return sorted(self.folder.glob("samples-*.safetensors"), reverse=True)


def discard(folder: Path) -> None:
    """Remove all snapshots of a measurement."""
    if folder.exists():
        shutil.rmtree(folder)


def _read(path: Path) -> tuple[str, State, dict[str, Array]]:
    header = read_header(path)
    arrays = {name: read_tensor(path, info) for name, info in header.tensors.items()}
    text = header.metadata.get("state", "")
    if header.metadata.get("sha256") != _digest(text, arrays):
        raise InputRefused("its content digest differs")
    value = parse_json(text.encode(), path.name)
    key = value.pop("key")
    return key, State(**value), arrays


def _digest(text: str, arrays: dict[str, Array]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
