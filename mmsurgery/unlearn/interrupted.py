"""Trainings that were interrupted: by which recipe, so that they can go on and are not lost without a word."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.errors import Mismatch, MmsurgeryError

if TYPE_CHECKING:
    from mmsurgery.workspace import Progress

_ASKED = "training.json"
"""Beside the snapshots of a training: `model`, `recipe` (its name), `asked` (as it was given; None for the default)."""


def train_command(which: str, recipe: str | None, *, force: bool = False) -> str:
    """The command that trains a model by a recipe, given by its name or its path; by the default one where None."""
    option = "" if recipe is None else f" --recipe {shlex.quote(recipe)}"
    return f"mmsurgery train {which}{option}" + (" --force" if force else "")


class TrainingSnapshots(Snapshots):
    """Snapshots of a training by a recipe, with how it was asked for beside them."""

    def __init__(self, made: Path, origin: Mapping[str, Any], asked: Mapping[str, Any], *, force: bool) -> None:
        super().__init__(self.folder_of(made), origin, force=force)
        self.asked = asked

    def check(self, progress: Progress) -> None:
        try:
            super().check(progress)
        except Mismatch as error:
            mine = train_command(self.asked["model"], self.asked["asked"])
            for other in interrupted_trainings(self.folder.parent):
                if other.folder == self.folder and other.command != mine:
                    error.next_step = f"{other.command} goes on with it; --force begins anew"
            raise

    def save(self, done: int, state: Mapping[str, Any], arrays: Iterable[tuple[str, np.ndarray[Any, Any]]]) -> None:
        write_json(self.folder / _ASKED, dict(self.asked))
        super().save(done, state, arrays)


@dataclass(frozen=True)
class InterruptedTraining:
    """A training that goes on with the same command."""

    folder: Path
    """Of its snapshots."""
    model: str
    recipe: str
    command: str


def training_snapshots(
    made: Path, origin: Mapping[str, Any], recipe: str, asked: str | None, *, force: bool
) -> TrainingSnapshots:
    """The snapshots of the training that makes `made`.

    Args:
        recipe: the recipe's name.
        asked: what it was given as, a name or a path; None for the default one.
    """
    path = None if asked is None else asked if asked == recipe else str(Path(asked).expanduser().absolute())
    return TrainingSnapshots(made, origin, {"model": made.name, "recipe": recipe, "asked": path}, force=force)


def interrupted_trainings(models: Path) -> list[InterruptedTraining]:
    """Those below a workspace's `models/` that say by which recipe they were, by folder."""
    found = []
    for path in sorted(models.glob(f".resume-*/{_ASKED}")):
        try:
            value = read_json(path)
        except MmsurgeryError:
            continue  # its snapshots are whole all the same: it is listed as any other that was interrupted
        texts = [value.get(key) for key in ("model", "recipe")] if isinstance(value, dict) else [None]
        name = path.parent.name.removeprefix(".resume-")
        if texts[0] == name and all(isinstance(text, str) for text in [*texts, value.get("asked") or ""]):
            command = train_command(name, value.get("asked"))
            found.append(InterruptedTraining(path.parent, name, str(value["recipe"]), command))
    return found
