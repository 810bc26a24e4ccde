"""`train`: the models that unlearning starts from or aims at, by the benchmark's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, model_config
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import benchmark, source_of, training_parts
from mmsurgery.data.samples import Sample
from mmsurgery.errors import Mismatch, MissingArtifact, UsageError, unknown
from mmsurgery.portraits.training import Trained
from mmsurgery.provenance import differences
from mmsurgery.recipes import Recipe, find_recipe, shipped_recipes
from mmsurgery.settings import SETTINGS_FILE
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.tuning import START, Tuning
from mmsurgery.workspace import SILENT, Progress, Workspace

TRAINABLE = {
    "vanilla": "fine-tuned on the full set: knows everyone by picture and text",
    "gold": "never saw the forget people's pictures but knows their text: what unlearning aims at",
    "reference": "fine-tuned on the retain set alone: NPO's oracle",
}


@dataclass(frozen=True)
class Tuned(Trained):
    """A model that was trained by a recipe."""

    recipe: str
    samples: dict[str, int]
    """Data part -> samples that it was trained on."""
    steps: int
    loss: tuple[float, float]
    """Mean answer NLL of the first and of the last step's samples, nats."""


def train(
    workspace: Workspace, which: str, *, recipe: str | None = None, force: bool = False, progress: Progress = SILENT
) -> Trained:
    """Train one of `TRAINABLE` for the workspace's benchmark; resumable.

    Args:
        recipe: name of a shipped recipe, or a file; where None, for gold and reference that of a vanilla
            trained here, else `BENCHMARK.BACKBONE`. Portraits has its own.

    Raises:
        UsageError: for another name, an unknown or broken recipe, a vanilla model that was given.
        MissingArtifact: if there is no base model to train from.
        Mismatch: if a model of that name, or an interrupted training, was trained in another way and `force` is not
            given.
        InputRefused, UnusableData: if base or data are broken, or the training diverges.
        MachineFault: if the disk is too small or the workspace is in use.
    """
    if which not in TRAINABLE:
        raise unknown("trainable model", which, TRAINABLE)
    folder = workspace.model_dir(which)
    if folder.parent != workspace.path("models"):
        raise UsageError(
            f"models.{which} in {SETTINGS_FILE} is {folder}, a model that was given",
            f'train gold or reference, or set models.{which} = "models/{which}"',
        )
    if workspace.settings.benchmark.name == "portraits":
        if recipe is not None:
            raise UsageError("portraits has a training of its own", "leave --recipe out")
        from mmsurgery.portraits.prepare import prepare_model

        return prepare_model(workspace, which, force=force, progress=progress)
    tuning = tuning_of(workspace, which, recipe, progress)
    tuning.check()
    with workspace.lock():
        if folder.exists() and not force:
            record = _existing(tuning)
            Snapshots.discard_of(folder)  # of a run that was killed once it had made the model
            return _result(tuning, record, up_to_date=True)
        record = tuning.make(replace=force, progress=progress)
        workspace.journal("train", model=which, recipe=tuning.recipe_name)
    return _result(tuning, record, up_to_date=False)


def tuning_of(workspace: Workspace, which: str, recipe: str | None, progress: Progress) -> Tuning:
    """What `train` of the same arguments would do; the benchmark is read, no weight is loaded."""
    base = _base(workspace)
    family = backbone(model_config(base)["model_type"])
    own = None if recipe is not None or which == "vanilla" else _vanilla_recipe(workspace)
    name, numbers = own or _recipe(workspace.settings.benchmark.name, family.model_type, recipe)
    if own:
        progress.note(f"by recipe {name}, as vanilla was trained, so that the two compare")
    reader = benchmark(workspace.settings.benchmark.name)
    source, parts = training_parts(reader, source_of(workspace), which)
    with progress.stage("reading the benchmark", len(parts)) as advance:
        samples: dict[str, Sequence[Sample]] = {}
        for part in parts:
            samples[part] = reader.samples(source, part)
            advance(1)
    return Tuning(
        name=which,
        folder=workspace.model_dir(which),
        files=CheckpointFiles(base, family.canonical),
        family=family,
        parts=samples,
        recipe_name=name,
        recipe=numbers,
        recipe_asked=recipe,
        threads=workspace.threads,
    )


def _base(workspace: Workspace) -> Path:
    folder = workspace.model_dir(START)
    if not (folder / "config.json").exists():
        raise MissingArtifact(
            f"no base model to train from: {folder}",
            f"mmsurgery init --base PATH_OR_ID, or models.base in {SETTINGS_FILE}",
        )
    return folder


def _vanilla_recipe(workspace: Workspace) -> tuple[str, Recipe] | None:
    """Name and numbers of the recipe by which the workspace's vanilla model was trained here, if it was."""
    folder = workspace.model_dir("vanilla")
    recorded = read_record(folder).get("recipe") if (folder / RUN_FILE).exists() else None
    if not isinstance(recorded, dict):
        return None
    numbers = {key: value for key, value in recorded.items() if key != "name"}
    return str(recorded["name"]), Recipe(**{**numbers, "betas": tuple(numbers["betas"])})


def _recipe(benchmark_name: str, model_type: str, asked: str | None) -> tuple[str, Recipe]:
    default = f"{benchmark_name}.{model_type}"
    if asked is None and default not in shipped_recipes():
        raise UsageError(
            f"no recipe '{default}' comes with the package",
            f"pass --recipe FILE, or one of {', '.join(shipped_recipes())}",
        )
    return find_recipe(default if asked is None else asked)


def _existing(tuning: Tuning) -> dict[str, Any]:
    record, origin = read_record(tuning.folder), tuning.provenance()
    if record["provenance"].get("key") != origin["key"]:
        other = differences(record["provenance"], origin)
        raise Mismatch(f"model '{tuning.name}' exists, trained with other {other}", "pass --force to replace it")
    CheckpointFiles(tuning.folder, tuning.family.canonical).digest()  # refuses what is not as its training wrote it
    return record


def _result(tuning: Tuning, record: dict[str, Any], *, up_to_date: bool) -> Tuned:
    losses = record["losses"]
    return Tuned(
        model=tuning.name,
        path=tuning.folder,
        up_to_date=up_to_date,
        model_sha256=record["model_sha256"],
        recipe=record["recipe"]["name"],
        samples={part: len(samples) for part, samples in tuning.parts.items()},
        steps=record["steps"]["done"],
        loss=(losses[0]["train"], losses[-1]["train"]),
    )
