"""The experiments beyond the paper: their rows, budgets, worlds and anchor pictures."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from mmsurgery.api import Workspace
from mmsurgery.data.samples import decode_image
from mmsurgery.errors import UnusableData
from mmsurgery.experiments.anchor_pictures import KINDS, anchor_pictures
from mmsurgery.experiments.beyond import BEYOND, BEYOND_ABLATIONS, BEYOND_EQUAL, BEYOND_MASKS, TRIED
from mmsurgery.experiments.catalogue import EXPERIMENTS, find
from mmsurgery.experiments.levels import levels_of
from mmsurgery.experiments.paper import MMUNLEARNER
from mmsurgery.experiments.rows import Experiment, Row
from mmsurgery.methods.base import Budget
from mmsurgery.portraits.world import World
from mmsurgery.report import write
from mmsurgery.settings import BenchmarkSettings, RecipeSettings, Settings
from mmsurgery.unlearn.request import Request
from mmsurgery_cli import running

ALL = (TRIED, BEYOND, BEYOND_EQUAL, BEYOND_MASKS, BEYOND_ABLATIONS)
EVERY = pytest.mark.parametrize("experiment", ALL, ids=lambda each: each.name)
RECIPE = RecipeSettings(learning_rate=3e-4)


def named(row: Row) -> str:
    return row.model_name(dataclasses.asdict(row.recipe(RECIPE)))


@EVERY
def test_every_experiment_is_found_by_its_name(experiment: Experiment) -> None:
    assert find(experiment.name) is experiment
    assert set(EXPERIMENTS) == set(write.EXPERIMENTS)
    (said,) = typing.get_type_hints(running.experiment, include_extras=True)["name"].__metadata__
    assert experiment.name in re.findall(r"[a-z0-9-]+", said.help)


@EVERY
def test_rows_are_runs_of_their_own(experiment: Experiment) -> None:
    keys = [row.key for row in experiment.rows]
    assert len({*keys}) == len(keys)
    assert experiment.compared in keys
    names: dict[str, list[str]] = {}
    for row in experiment.rows:
        names.setdefault(named(row), []).append(row.key)
    assert all(len(rows) == 1 for rows in names.values()), names


@EVERY
def test_apply_takes_every_row(experiment: Experiment, tmp_path: Path) -> None:
    """Its method, settings and scope are such as `apply` knows."""
    workspace = Workspace(tmp_path, Settings(recipe=RECIPE))
    for row in experiment.rows:
        given = {key: value for key, value in row.settings.items() if key not in ("settings", "retain_batch")}
        asked = {
            "scope": None,
            "protocol": "equations",
            "lora": None,
            "start": "vanilla",
            "reference": "vanilla",
            "forget_weight": 1.0,
            "eval_every": 0,
            "steps": None,
            **given,
        }
        recipe = row.recipe(RECIPE)
        request = Request.of(
            workspace,
            row.method,
            name="made",
            mask=row.mask_name(),
            learning_rate=recipe.learning_rate,
            batch_size=recipe.batch_size,
            retain_batch=row.retain_batch,
            epochs=recipe.epochs,
            seed=None,
            precision=None,
            settings=row.settings.get("settings", {}),
            **asked,
        )
        assert request.recipe == recipe
        best = row.budget or request.method.budget
        assert request.retain_size == (row.retain_batch or (best.retain_batch if best else recipe.batch_size))


def test_equal_compute_is_equal() -> None:
    ascent = BEYOND.row("anchored-ascent")
    recipe = ascent.recipe(RECIPE)
    for key in ("mmunlearner-equal", "ga-diff-equal"):
        row = BEYOND.row(key)
        assert row.recipe(RECIPE) == recipe
        assert row.retain_batch == 16 + 16 + 8
    assert (recipe.batch_size, recipe.learning_rate) == (12, pytest.approx(2e-4))
    for key in ("mmunlearner-slow", "ga-diff-slow"):
        slow = BEYOND_EQUAL.row(key).recipe(RECIPE)
        assert (slow.batch_size, slow.epochs, slow.learning_rate) == (12, 2 * recipe.epochs, pytest.approx(1e-4))


def test_other_comparisons_are_of_the_same_runs() -> None:
    known = {row.key: named(row) for row in BEYOND.rows}
    own = ("mmunlearner-slow", "ga-diff-slow", "ga-diff-0.2")
    for experiment in (BEYOND_EQUAL, BEYOND_MASKS):
        shared = {row.key: named(row) for row in experiment.rows if row.key not in own}
        assert shared.items() <= known.items()
        assert (experiment.first, experiment.worlds, experiment.audit) == (2000, True, False)
        assert experiment.rows[0].key == experiment.compared


def test_a_budget_is_that_of_the_row_then_of_the_method_then_of_the_recipe() -> None:
    assert MMUNLEARNER.recipe(RECIPE) == RECIPE
    assert MMUNLEARNER.retain_batch is None
    ours = dataclasses.replace(BEYOND.row("robust"), budget=Budget(batch_size=2, retain_batch=3, epochs=1, rate=0.5))
    assert ours.recipe(RECIPE) == dataclasses.replace(RECIPE, batch_size=2, epochs=1, learning_rate=1.5e-4)
    assert ours.retain_batch == 3
    assert named(ours) != named(BEYOND.row("robust"))
    assert named(dataclasses.replace(ours, anchors="few")) != named(ours)
    assert ours.describe()["batch_size"] == 2


def test_every_vanilla_model_is_of_a_world_of_its_own(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Settings())
    for worlds, found in ((True, [2000, 2001]), (False, [0, 0])):
        made = levels_of(workspace, seeds=[2000, 2001], backbones=["llava"], worlds=worlds)
        assert [level.settings.benchmark.world for level in made] == found
        assert [level.settings.benchmark.draw for level in made] == [2000, 2001]
        assert len({level.folder for level in made}) == 2
    judged = {BEYOND.first, BEYOND_ABLATIONS.first}
    assert judged == {2000}
    assert TRIED.first + 900 < 2000


@pytest.mark.parametrize("kind", KINDS)
def test_other_anchor_pictures(kind: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Settings(benchmark=BenchmarkSettings(world=3)))
    folder = anchor_pictures(workspace, kind)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == (40 if kind == "few" else 400)
    assert len({*files.values()}) == len(files)
    for name, data in list(files.items())[:3]:
        assert decode_image(data, name).size == (48, 48)
    assert anchor_pictures(workspace, kind) == folder
    usual = {World(3).picture(person, "train/0") for person in World(3).anchors}
    assert bool(usual & {*files.values()}) == (kind == "few")


def test_other_anchor_pictures_are_of_portraits(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Settings(benchmark=BenchmarkSettings(name="folder", data="data")))
    with pytest.raises(UnusableData, match="portraits alone"):
        anchor_pictures(workspace, "few")
