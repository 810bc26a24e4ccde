"""A grid from nothing: levels, models, scores, results; resumed, repeated, several levels at a time."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.api import Workspace
from mmsurgery.data.benchmark import benchmark
from mmsurgery.errors import MachineFault, MissingArtifact, UnusableData, UsageError
from mmsurgery.experiments import levels, rows, run
from mmsurgery.portraits import training
from mmsurgery.settings import BenchmarkSettings, ModelSettings, RecipeSettings, Settings
from mmsurgery.unlearn.finetune import Stage

EXPERIMENT = rows.Experiment("tried", "Tried", (rows.GA_DIFF, rows.Row(key="ga", label="GA", method="ga")), "ga_diff")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty portraits workspace whose models are trained for one step and asked twelve items a column."""
    monkeypatch.setattr(training, "BASE", (Stage(steps=1, learning_rate=1e-3),))
    monkeypatch.setattr(training, "SETTINGS", {"saturated": (Stage(steps=1, learning_rate=1e-3),)})
    monkeypatch.setattr(rows, "EXPERIMENTS", {"tried": EXPERIMENT})
    monkeypatch.setattr(levels, "POINTS", 1)
    reader = type(benchmark("portraits"))
    every = reader.items
    monkeypatch.setattr(reader, "items", lambda *args, **kwargs: every(*args, **kwargs)[:12])
    recipe = RecipeSettings(learning_rate=1e-4, epochs=1, batch_size=63)
    settings = Settings(benchmark=BenchmarkSettings(forget=5), models=ModelSettings(), recipe=recipe)
    (tmp_path / "mmsurgery.toml").write_text(settings.to_toml())
    return Workspace(tmp_path, settings)


def test_grid(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run.experiment(workspace, "tried", seeds=1, jobs=1)
    assert not made.up_to_date
    assert [cell["row"] for cell in made.results["cells"]] == ["ga_diff", "ga"]
    (level,) = made.results["levels"]
    folder = workspace.path(level["folder"])
    assert (folder / "mmsurgery.toml").exists()
    for cell in made.results["cells"]:
        assert (folder / "models" / cell["model"] / "mmsurgery-run.json").exists()
        assert (cell["steps"], cell["samples"]["forget"]) == (1, 63)
        assert cell["fixed"]["columns"] == cell["curve"][1]["columns"]
        # an untrained model is at chance: it is at matched forgetting from the start, or searched three budgets
        assert cell["searched"] == (1 if cell["matched"] else 3)
    table = made.path.with_name(run.TABLE).read_text()
    assert "| GA_Diff |" in table
    before = made.path.read_bytes()

    def untouched(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("mmsurgery.unlearn.loop.train", untouched)
    again = run.experiment(workspace, "tried", seeds=1, jobs=1)
    assert again.up_to_date
    made.path.write_bytes(b"damaged")
    assert not run.experiment(workspace, "tried", seeds=1, jobs=1).up_to_date
    assert made.path.read_bytes() == before
    assert run.read_results(made.path)["name"] == "tried"


def test_levels_rotate_seed_and_draw(workspace: Workspace) -> None:
    found = levels.levels_of(workspace, seeds=2, backbones=("llava", "qwen2_vl"))
    assert [(x.backbone, x.seed, x.settings.benchmark.draw, x.settings.models.seed) for x in found] == [
        ("llava", 0, 0, 0),
        ("llava", 1, 1, 1),
        ("qwen2_vl", 0, 0, 0),
        ("qwen2_vl", 1, 1, 1),
    ]
    assert [x.own for x in found] == [True, False, False, False]
    assert len({x.folder for x in found}) == 4
    # the recipe is in the names of models, not of levels
    other = Workspace(
        workspace.root,
        dataclasses.replace(workspace.settings, recipe=dataclasses.replace(workspace.settings.recipe, epochs=9)),
    )
    assert levels.levels_of(other, seeds=1, backbones=("llava",))[0].folder == found[0].folder


def test_given_models_and_data_are_shared(workspace: Workspace) -> None:
    settings = dataclasses.replace(workspace.settings, benchmark=BenchmarkSettings(name="mllmu-bench", data="files"))
    found = levels.levels_of(Workspace(workspace.root, settings), seeds=2, backbones=("llava",))
    assert [x.settings.benchmark.data for x in found] == [str(workspace.root / "files")] * 2
    assert [x.settings.models.vanilla for x in found] == [str(workspace.root / "models" / "vanilla")] * 2
    assert [x.settings.recipe.seed for x in found] == [0, 1]


def test_wrong_arguments(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="no experiment"):
        run.experiment(workspace, "table9")
    with pytest.raises(UsageError, match="at least 1"):
        run.experiment(workspace, "tried", seeds=0)
    with pytest.raises(UsageError, match="gpt"):
        run.experiment(workspace, "tried", backbones=("gpt",))
    settings = dataclasses.replace(workspace.settings, benchmark=BenchmarkSettings(name="mllmu-bench"))
    with pytest.raises(UsageError, match="only portraits"):
        run.experiment(Workspace(workspace.root, settings), "tried", backbones=("llava",))
    with pytest.raises(MissingArtifact, match="does not exist"):
        run.read_results(workspace.path("experiments", "tried", run.RESULTS))


def _killed(task: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_grid(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool gives a dead worker's task to nobody: the grid would wait without end."""
    monkeypatch.setattr(run, "_in_pool", _killed)
    found = levels.levels_of(workspace, seeds=2, backbones=("llava",))
    tasks = [(place, level, "tried") for place, level in enumerate(found)]
    with pytest.raises(MachineFault, match="was killed"):
        list(run._work(tasks, 2, run.SILENT, lambda amount: None))


def test_a_longer_run_that_diverges_leaves_the_fixed_budget(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "evaluations": [{"step": 0, "correct": {"forget_vqa": "0f"}}],
        "provenance": {"key": "k"},
        "steps": {"done": 1},
        "samples": {},
    }

    def row(*args: Any, budgets: int = 1, **kwargs: Any) -> Any:
        if budgets > 1:
            raise UnusableData("step 3: the forget loss is nan")
        return "ga", record, None

    told: list[str] = []
    monkeypatch.setattr(run, "run_row", row)
    monkeypatch.setattr(run, "scored", lambda *args, **kwargs: {"ga": {"correct": {}}})
    cell = run._cell(workspace, rows.GA_DIFF, {"forget_vqa": [0] * 4}, 0.5, run._Told("x", told.append, len))
    assert "failed" not in cell
    assert cell["evaluations"] == record["evaluations"]
    assert told == ["x: GA_Diff, longer run: step 3: the forget loss is nan"]
