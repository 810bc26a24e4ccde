"""Snapshots of a running training, so that a killed run goes on and ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import canonical_json, parse_json, versions
from mmsurgery.workspace import Progress

if TYPE_CHECKING:
    import numpy as np

GENERATIONS = 2


@dataclass
class History:
    """What a run has gone through so far; plain JSON."""

    losses: list[dict[str, float]] = field(default_factory=list)
    """Per step: loss of each kind, unweighted, and `norm`, the gradient's norm after masking, before clipping."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """What `--eval-every` found: `step` (steps done), `columns` (accuracy by column) and `correct` (by column,
    in the items' order, packed bits of which were right, bit order little, as hex)."""

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)


class Snapshots:
    """The two newest snapshots of one run, in a folder of their own.

    Args:
        folder: named after the run's settings and inputs, so that another run never goes on from it.
        interval: seconds between snapshots.
    """

    def __init__(self, folder: Path, *, interval: float = 60.0) -> None:
        self.folder, self.interval = folder, interval
        self._last = time.monotonic()

    @classmethod
    def of(cls, model: Path, key: str) -> Snapshots:
        """The snapshots of the run that makes the model folder `model` and is identified by `key`."""
        return cls(model.with_name(f".resume-{model.name}-{key[:12]}"))

    @staticmethod
    def discard_all(model: Path) -> None:
        """Remove the snapshots of every run that was to make this model folder: it is made."""
        for folder in model.parent.glob(f".resume-{model.name}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.interval

    def save(self, history: History, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        """Write a snapshot atomically and remove all but the two newest.

        Raises:
            MachineFault: if it cannot be written.
        """
        state = {"losses": history.losses, "evaluations": history.evaluations, "versions": versions()}
        text = canonical_json(state).decode()
        path = self.folder / f"step-{history.steps:08d}.safetensors"
        write_safetensors(path, tensors, {"state": text, "sha256": _digest(text, tensors)})
        for old in self._newest()[GENERATIONS:]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()

    def load(self, progress: Progress) -> tuple[History, dict[str, np.ndarray[Any, Any]]] | None:
        """The newest whole snapshot, or None; says so where a newer one is damaged."""
        for path in self._newest():
            try:
                history, tensors = _read(path)
            except InputRefused as error:
                progress.note(f"snapshot {path.name} is left out: {error.what}")
                continue
            progress.note(f"going on after step {history.steps}")
            return history, tensors
        return None

    def _newest(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)


def _read(path: Path) -> tuple[History, dict[str, np.ndarray[Any, Any]]]:
    header = read_header(path)
    tensors = {name: read_tensor(path, info).copy() for name, info in header.tensors.items()}
    text = header.metadata.get("state", "")
    if header.metadata.get("sha256") != _digest(text, tensors):
        raise InputRefused("its content digest differs")
    state = parse_json(text.encode(), path.name)
    if state["versions"] != versions():
        raise InputRefused("it was written with other library versions")
    return History(state["losses"], state["evaluations"]), tensors


def _digest(text: str, tensors: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256(json.dumps([text, sorted((n, t.shape) for n, t in tensors.items())]).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
