"""The levels of a grid: one vanilla model each, in a workspace of its own, with every model that starts from it.

A level lies in `experiments/levels/BACKBONE.SEED-DIGEST/`, an ordinary workspace that any verb can be pointed
at. Experiments share levels, and within a level rows that are the same run share a model.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.artifacts.files import atomic_folder, write_bytes
from mmsurgery.data.samples import Item
from mmsurgery.evaluate import evaluate
from mmsurgery.evaluate.records import read_eval, read_items
from mmsurgery.experiments.rows import POINTS, Row
from mmsurgery.hub_models import pinned_model
from mmsurgery.masks.build import build_mask
from mmsurgery.portraits.prepare import prepare as prepare_portraits
from mmsurgery.portraits.prepare import prepare_model
from mmsurgery.provenance import sha256_json
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Progress


@dataclass(frozen=True)
class Level:
    """A vanilla model: its backbone, the seed of its training and of unlearning, and whom it is to forget."""

    root: Path
    """The workspace whose experiment it is."""
    settings: Settings
    """Of the level's own workspace."""
    own: bool = False
    """Whether the models that `root` trains for itself are the level's too."""

    @property
    def backbone(self) -> str:
        return self.settings.models.backbone

    @property
    def seed(self) -> int:
        return self.settings.recipe.seed

    @property
    def label(self) -> str:
        return f"{self.backbone} seed {self.seed}"

    @property
    def folder(self) -> Path:
        made_of = [dataclasses.asdict(self.settings.benchmark), dataclasses.asdict(self.settings.models)]
        return self.root / "experiments" / "levels" / f"{self.backbone}.{self.seed}-{sha256_json(made_of)[:8]}"


def levels_of(workspace: Workspace, *, seeds: int, backbones: tuple[str, ...]) -> list[Level]:
    """The levels of a grid, seeds varying fastest.

    For a benchmark that trains its models on the spot, seed k is a vanilla model of its own, and draw k of the
    people to forget. Elsewhere the workspace's vanilla model and forget set are given, and seed k is the order
    of unlearning.
    """
    found = []
    for backbone in backbones:
        for seed in range(seeds):
            settings = workspace.settings
            models = dataclasses.replace(settings.models, backbone=backbone)
            benchmark = settings.benchmark
            if benchmark.name == "portraits":
                models = dataclasses.replace(models, base="models/base", vanilla="models/vanilla", seed=seed)
                benchmark = dataclasses.replace(benchmark, data="data", draw=seed)
            else:
                base, vanilla = (_given(workspace, name, getattr(models, name)) for name in ("base", "vanilla"))
                models = dataclasses.replace(models, base=base, vanilla=vanilla)
                benchmark = dataclasses.replace(benchmark, data=str(workspace.data_dir))
            recipe = dataclasses.replace(settings.recipe, seed=seed)
            own = (benchmark, models) == (settings.benchmark, settings.models)
            made = Settings(benchmark=benchmark, models=models, recipe=recipe)
            found.append(Level(workspace.root, made, own))
    return found


def _given(workspace: Workspace, name: str, setting: str) -> str:
    """What a level's settings say of a given model: its id on the hub, or its path from anywhere."""
    return setting if pinned_model(setting) else str(workspace.model_dir(name))


def prepare(level: Level, *, reference: bool, progress: Progress) -> Workspace:
    """The level's workspace, its data and trained models made as far as they are missing; resumable.

    Args:
        reference: whether the model fine-tuned on the retain set is needed too.

    Raises:
        as `portraits.prepare`.
    """
    workspace = Workspace(level.folder, level.settings)
    text = level.settings.to_toml().encode()
    file = level.folder / SETTINGS_FILE
    if not file.exists() or file.read_bytes() != text:  # the recipe is in no name of a level, but of its models
        write_bytes(file, text)
    if level.settings.benchmark.name == "portraits":
        _take_over(level, workspace)
        prepare_portraits(workspace, progress=progress)
        for which in ("gold", "reference") if reference else ("gold",):
            prepare_model(workspace, which, progress=progress)
    return workspace


def _take_over(level: Level, workspace: Workspace) -> None:
    """Copy the models that the outer workspace has trained with the very settings of the level."""
    if not level.own:
        return
    outer = Workspace(level.root, level.settings)
    for name in ("base", "vanilla", "gold", "reference"):
        source, target = outer.model_dir(name), workspace.model_dir(name)
        if (source / "config.json").exists() and not target.exists():
            with atomic_folder(target) as new:
                shutil.copytree(source, new, dirs_exist_ok=True)


def scored(workspace: Workspace, models: Sequence[str], *, progress: Progress) -> dict[str, dict[str, Any]]:
    """Scores of models, made as far as they are missing: name -> `{model_sha256, correct, remarks}`, where
    `correct` holds one truth value per item by column."""
    evaluate(workspace, list(models), progress=progress)
    found = {}
    for name in models:
        path = workspace.eval_path(name)
        record = read_eval(path)
        found[name] = {
            "model_sha256": record["provenance"]["inputs"]["model_sha256"],
            "correct": {column: [item.correct for item in items] for column, items in read_items(path).items()},
            "remarks": record["remarks"],
        }
    return found


def scored_items(workspace: Workspace) -> dict[str, list[Item]]:
    """The items of every column of the paper's tables that has some, in the order in which runs record them."""
    wanted = [column for column in workspace.benchmark.columns(workspace.source) if column != "test_vqa"]
    found = {column: workspace.items(column) for column in wanted}
    return {column: items for column, items in found.items() if items}


def run_row(
    workspace: Workspace, row: Row, *, budgets: int = 1, progress: Progress
) -> tuple[str, Mapping[str, Any], float | None]:
    """Make a row's model, or find it.

    Args:
        budgets: how many times the recipe's epochs to run.

    Returns:
        The model's name, its run record, and the share of all weights that its mask selects.

    Raises:
        as `masks.build.build_mask` and `unlearn.apply.apply`.
    """
    recipe = dataclasses.replace(workspace.settings.recipe, epochs=workspace.settings.recipe.epochs * budgets)
    mask, density = row.mask_name(), None
    if mask is not None and row.mask is not None:
        seed = recipe.seed if row.mask.get("control") == "random" else None
        density = build_mask(workspace, name=mask, seed=seed, **row.mask, progress=progress).mask.density()
    steps = -(-len(workspace.samples("forget_vqa")) // recipe.batch_size) * workspace.settings.recipe.epochs
    name = row.model_name(dataclasses.asdict(recipe))
    made = apply(
        workspace,
        row.method,
        mask=mask,
        name=name,
        epochs=recipe.epochs,
        eval_every=max(1, steps // POINTS),
        progress=progress,
        **row.settings,
    )
    return name, read_record(made.path), density
