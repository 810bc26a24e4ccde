"""Training the portraits' models on the spot: the base that knows celebrities, and what is fine-tuned from it.

base        micro model, stage A: celebrities, and seeing (strangers)
vanilla     base, stage B: the fictitious people by picture and by name, with replay of stage A
gold        as vanilla, the forget people's pictures left out, their text kept
reference   as vanilla, the retain people alone

One thread, so that the bytes are the same on the same machine whoever asks. The default models come with
the package and are unpacked in place of a training that would give them (`mmsurgery.portraits.shipped`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import InputRefused, Mismatch, unknown
from mmsurgery.portraits.identity import made_for
from mmsurgery.portraits.shipped import unpack
from mmsurgery.portraits.world import Mixture, World, generator, vocabulary
from mmsurgery.provenance import differences, provenance, sha256_json
from mmsurgery.unlearn.finetune import Stage, finetune
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.save import check_space, commit
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.protocol import Backbone

BASE = (Stage(steps=300, learning_rate=2.5e-3),)
FRAGILE = (Stage(steps=500, learning_rate=2.5e-3),)
SETTINGS = {"fragile": FRAGILE, "saturated": (*FRAGILE, Stage(steps=450, learning_rate=2e-3))}
REPLAY = 0.3
"""Share of stage A's data in the later stages."""
BATCH = 64
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
BETAS = (0.9, 0.95)
THREADS = 1
WHICH = ("vanilla", "gold", "reference")

Stream = Sequence[tuple[float, Sequence[Sample]]]
"""Shares that add up to one, each with the samples it is drawn from."""


@dataclass(frozen=True)
class Trained:
    """A trained model."""

    model: str
    path: Path
    up_to_date: bool
    """Whether it was there already, made by the same recipe."""
    model_sha256: str


def train_base(workspace: Workspace, *, force: bool = False, progress: Progress = SILENT) -> Trained:
    """Initialise the micro model and teach it celebrities and seeing (stage A); raises as `train`."""
    family = backbone(workspace.settings.models.backbone)
    world = World(workspace.settings.benchmark.world)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "micro")
        family.micro(start, vocabulary(), seed=workspace.settings.models.seed, size="portraits")
        files = CheckpointFiles(start, family.canonical)
        return _train(
            workspace, "base", files, family, _stream(world.pretraining(), 1.0), BASE, force=force, progress=progress
        )


def train(workspace: Workspace, which: str, *, force: bool = False, progress: Progress = SILENT) -> Trained:
    """Fine-tune `vanilla`, `gold` or `reference` from the base; resumable.

    The caller holds the workspace's lock, or sees to it that nobody else trains the same model.

    Raises:
        UsageError: for another name; MissingArtifact: if there is no base.
        Mismatch: if a model of that name was trained in another way and `force` is not given.
        UnusableData: if the training diverges.
    """
    if which not in WHICH:
        raise unknown("trainable model", which, WHICH)
    settings = workspace.settings
    world = World(settings.benchmark.world)
    forget = frozenset(person.key for person in world.forget_people(settings.benchmark.forget, settings.benchmark.draw))
    retain = frozenset(person.key for person in world.people) - forget
    people = {
        "vanilla": world.finetuning(),
        "gold": world.finetuning(exclude_people_pictures=forget),
        "reference": world.finetuning(only_people=retain),
    }[which]
    stream = [*_stream(people, 1 - REPLAY), *_stream(world.pretraining(), REPLAY)]
    family = backbone(settings.models.backbone)
    files = CheckpointFiles(workspace.existing_model("base"), family.canonical)
    return _train(
        workspace, which, files, family, stream, SETTINGS[settings.models.setting], force=force, progress=progress
    )


def _stream(mixture: Mixture, share: float) -> Stream:
    return [(share * part, samples) for part, samples in mixture.values()]


def draw(stream: Stream, key: str, step: int) -> list[list[Sample]]:
    """A step's batch in two sub-batches, with pictures and without, so that text is not padded to their length."""
    chances = generator(key, step).random((2, BATCH))
    kinds = np.searchsorted(np.cumsum([share for share, _ in stream])[:-1], chances[0], side="right")
    chosen = [stream[kind][1][int(place * len(stream[kind][1]))] for kind, place in zip(kinds, chances[1], strict=True)]
    return [[s for s in chosen if s.image_bytes is not None], [s for s in chosen if s.image_bytes is None]]


def _train(
    workspace: Workspace,
    name: str,
    files: CheckpointFiles,
    family: Backbone,
    stream: Stream,
    stages: Sequence[Stage],
    *,
    force: bool,
    progress: Progress,
) -> Trained:
    folder, seed = workspace.model_dir(name), workspace.settings.models.seed
    origin = _origin(name, files, stream, stages, seed)
    if folder.exists() and not force:
        found = _existing(name, folder, family, origin)
        Snapshots.discard_of(folder)  # of a run that was killed once it had made the model
        return found
    wanted = made_for(workspace.settings, name)
    if not force and (shipped := unpack(folder, files, family, origin["key"], wanted)) is not None:
        progress.note(f"model '{name}' comes with the package")
        workspace.journal("train", model=name, shipped=True)
        return Trained(name, folder, False, shipped["model_sha256"])

    import torch

    from mmsurgery.backbones.loading import device_name, load
    from mmsurgery.unlearn.loop import deterministic

    check_space(files, folder.parent)
    with deterministic(THREADS):
        trained, history = finetune(
            load(files.path, torch.float32),
            lambda step: draw(stream, f"{seed}/{name}", step),
            stages,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
            betas=BETAS,
            snapshots=Snapshots(Snapshots.folder_of(folder), origin, force=force),
            what=f"training {name}",
            progress=progress,
        )
    body = {
        "model": name,
        "method": "finetune",
        "equation": "Eq. 14",
        "protocol": None,
        "scope": None,
        "mask": None,
        "start": files.path.name,
        "reference": None,
        "steps": {"planned": sum(stage.steps for stage in stages), "done": history.steps},
        "samples": {"train": history.steps * BATCH},
        "losses": history.losses,
        "evaluations": history.evaluations,
        "made_for": wanted,
        "provenance": {**origin, "device": device_name()},
    }
    record = commit(folder, files, family, trained, body, replace=force, progress=progress)
    workspace.journal("train", model=name)
    return Trained(name, folder, False, record["model_sha256"])


def _origin(name: str, files: CheckpointFiles, stream: Stream, stages: Sequence[Stage], seed: int) -> dict[str, Any]:
    settings = {
        "model": name,
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "shares": [share for share, _ in stream],
        "batch": BATCH,
        "weight_decay": WEIGHT_DECAY,
        "clip_norm": CLIP_NORM,
        "betas": list(BETAS),
        "seed": seed,
        "threads": THREADS,
    }
    inputs = {
        "start": files.digest(),
        "processor": companions_sha256(files.path),
        "data": sha256_json([data_sha256(samples) for _, samples in stream]),
    }
    return provenance("train", settings, inputs)


def _existing(name: str, folder: Path, family: Backbone, origin: dict[str, Any]) -> Trained:
    record = read_record(folder)
    if record["provenance"].get("key") != origin["key"]:
        other = differences(record["provenance"], origin)
        raise Mismatch(f"model '{name}' exists, trained with other {other}", "pass --force to replace it")
    if CheckpointFiles(folder, family.canonical).digest() != record["model_sha256"]:
        raise InputRefused(f"the weights of model '{name}' are not those its training wrote", "pass --force")
    return Trained(name, folder, True, record["model_sha256"])
