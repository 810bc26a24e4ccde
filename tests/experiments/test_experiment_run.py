"""A grid from nothing: levels, models, scores, results; resumed, repeated, several levels at a time."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mmsurgery.api import Workspace
from mmsurgery.data.benchmark import benchmark
from mmsurgery.errors import InputRefused, MachineFault, MissingArtifact, UnusableData, UsageError
from mmsurgery.experiments import catalogue, cells, grid, levels, paper, rows, run, tuning
from mmsurgery.experiments.metrics import read_metrics
from mmsurgery.portraits import files, training
from mmsurgery.portraits.world import World
from mmsurgery.settings import BenchmarkSettings, ModelSettings, RecipeSettings, Settings
from mmsurgery.unlearn.finetune import Stage

GA_DIFF, GA = paper.TABLE1.row("ga_diff"), paper.TABLE1.row("ga")
EXPERIMENT = rows.Experiment(
    name="tried", title="Tried", question="?", rows=(GA_DIFF, GA), compared="ga_diff", answers=False
)


_WORLD = functools.cache(World)
"""What is drawn of a seed is the same each time."""


def _small(patch: pytest.MonkeyPatch, folder: Path) -> Workspace:
    """An empty portraits workspace whose models are trained for one step and asked four items a column."""
    for module in (training, files):
        patch.setattr(module, "World", _WORLD)
    patch.setattr(training, "BASE", (Stage(steps=1, learning_rate=1e-3),))
    patch.setattr(training, "SETTINGS", {"saturated": (Stage(steps=1, learning_rate=1e-3),)})
    patch.setattr(catalogue, "EXPERIMENTS", {"tried": EXPERIMENT})
    patch.setattr(cells, "POINTS", 1)
    reader = type(benchmark("portraits"))
    every = reader.items
    patch.setattr(reader, "items", lambda *args, **kwargs: every(*args, **kwargs)[:4])
    recipe = RecipeSettings(learning_rate=1e-4, epochs=1, batch_size=63)
    settings = Settings(benchmark=BenchmarkSettings(forget=5), models=ModelSettings(), recipe=recipe)
    (folder / "mmsurgery.toml").write_text(settings.to_toml())
    return Workspace(folder, settings)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return _small(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def grid_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Any]]:
    """One vanilla model, two draws of people, two unlearning seeds, two rows; run once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        made = _small(patch, tmp_path_factory.mktemp("grid"))
        yield made, run.experiment(made, "tried", seeds=1, draws=2, unlearning_seeds=2, jobs=1)


def test_grid(grid_of_two: tuple[Workspace, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, made = grid_of_two
    assert not made.up_to_date
    results = made.results
    assert [(c["draw"], c["unlearning"], c["row"]) for c in results["cells"]] == [
        (draw, seed, row) for draw in (0, 1) for seed in (0, 1000) for row in ("ga_diff", "ga")
    ]
    folders = [workspace.path(level["folder"]) for level in results["levels"]]
    for cell in results["cells"]:
        folder = folders[cell["draw"]]
        assert (folder / "models" / cell["model"] / "mmsurgery-run.json").exists()
        assert (cell["steps"], cell["samples"]["forget"]) == (1, 63)
        assert cell["fixed"]["columns"] == cell["curve"][1]["columns"]
        # an untrained model is at chance: it is at matched forgetting from the start, or searched three budgets
        assert cell["searched"] == (1 if cell["matched"] else 3)
    # another unlearning seed is another run of the same row
    assert len({c["model_sha256"] for c in results["cells"] if c["draw"] == 0}) == 4
    assert "| GA_Diff |" in made.path.with_name("table.md").read_text()
    written = {path.name for path in made.path.parent.iterdir()}
    assert written >= {"results.json", "table.md", "table.tex", "table.csv", "numbers.csv", "tradeoff-llava.svg"}
    before = made.path.read_bytes()

    def untouched(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("mmsurgery.unlearn.loop.train", untouched)
    asked: dict[str, Any] = {"seeds": 1, "draws": 2, "unlearning_seeds": 2, "jobs": 1}
    assert run.experiment(workspace, "tried", **asked).up_to_date
    made.path.write_bytes(b"damaged")
    assert not run.experiment(workspace, "tried", **asked).up_to_date
    assert made.path.read_bytes() == before
    assert run.read_results(made.path)["name"] == "tried"


def test_levels_of_one_vanilla_share_it(grid_of_two: tuple[Workspace, Any]) -> None:
    """Another draw, and another ratio, of a seed: base and vanilla are the same files, gold is its own."""
    workspace, made = grid_of_two
    first, second = (workspace.path(level["folder"]) for level in made.results["levels"])
    for model, same in (("base", True), ("vanilla", True), ("gold", False)):
        files = [folder / "models" / model / "model.safetensors" for folder in (first, second)]
        assert os.path.samefile(*files) is same
    (level,) = levels.levels_of(workspace, seeds=[0], backbones=("llava",))
    asked = dataclasses.replace(level.settings.benchmark, forget=15)
    other = dataclasses.replace(level, settings=dataclasses.replace(level.settings, benchmark=asked))
    assert {name for found in levels._others(other) for name in levels._same_models(other, found)} == {
        "base",
        "vanilla",
    }
    assert {name for found in levels._others(level) for name in levels._same_models(level, found)} == {
        "base",
        "vanilla",
        "gold",
        "reference",
    }


def test_metrics_of_a_grid(grid_of_two: tuple[Workspace, Any]) -> None:
    _, made = grid_of_two
    events = read_metrics(made.path.with_name(run.METRICS))
    once = [event for event in events if event["event"] in ("level", "done")][:10]
    assert [event["event"] for event in once] == ["level", *["done"] * 4] * 2
    points = [event for event in events if event["event"] == "evaluation" and event["row"] == "ga"]
    assert {0, 1} <= {point["step"] for point in points}
    assert points[0]["columns"].keys() >= {"forget_vqa", "retain_vqa"}


def test_levels_rotate_seed_and_draw(workspace: Workspace) -> None:
    found = levels.levels_of(workspace, seeds=range(2), backbones=("llava", "qwen2_vl"))
    assert [(x.backbone, x.seed, x.settings.benchmark.draw, x.settings.models.seed) for x in found] == [
        ("llava", 0, 0, 0),
        ("llava", 1, 1, 1),
        ("qwen2_vl", 0, 0, 0),
        ("qwen2_vl", 1, 1, 1),
    ]
    assert len({x.folder for x in found}) == 4
    # the recipe is in the names of models, not of levels
    other = Workspace(
        workspace.root,
        dataclasses.replace(workspace.settings, recipe=dataclasses.replace(workspace.settings.recipe, epochs=9)),
    )
    assert levels.levels_of(other, seeds=[0], backbones=("llava",))[0].folder == found[0].folder


def test_given_models_and_data_are_shared(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ["a" * 64]
    monkeypatch.setattr(levels, "vanilla_files", lambda given: SimpleNamespace(digest=lambda: weights[0]))
    settings = dataclasses.replace(workspace.settings, benchmark=BenchmarkSettings(name="mllmu-bench", data="files"))
    given = Workspace(workspace.root, settings)
    (found,) = levels.levels_of(given, seeds=range(2), backbones=("llava",))
    assert found.settings.benchmark.data == str(workspace.root / "files")
    assert found.settings.models.vanilla == str(workspace.root / "models" / "vanilla")
    assert found.unlearning == (0, 1)
    moved = Workspace(workspace.root.parent / "elsewhere", settings)
    (there,) = levels.levels_of(moved, seeds=range(2), backbones=("llava",))
    assert there.folder.name == found.folder.name  # a workspace that was moved goes on
    weights[0] = "b" * 64
    (other,) = levels.levels_of(given, seeds=range(2), backbones=("llava",))
    assert other.folder != found.folder
    ratios = levels.levels_of(given, seeds=range(2), backbones=("llava",), by_ratio=True)
    assert [level.settings.benchmark.forget for level in ratios] == [5, 10, 15]
    with pytest.raises(UsageError, match="are given here"):
        levels.levels_of(given, seeds=range(2), backbones=("llava",), draws=2)
    own = dataclasses.replace(settings, benchmark=BenchmarkSettings(name="folder", data="files"))
    with pytest.raises(UsageError, match="one forget set"):
        levels.levels_of(Workspace(workspace.root, own), seeds=[0], backbones=("llava",), by_ratio=True)


def test_wrong_arguments(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="no experiment"):
        run.experiment(workspace, "table9")
    with pytest.raises(UsageError, match="at least 1"):
        run.experiment(workspace, "tried", seeds=0)
    with pytest.raises(UsageError, match="no shard"):
        run.experiment(workspace, "tried", shard="3/2")
    with pytest.raises(UsageError, match="1 vanilla model cannot be split into 2 shares - next: leave --shard out"):
        run.experiment(workspace, "tried", seeds=1, shard="1/2")
    with pytest.raises(UsageError, match="2 vanilla models cannot be split into 3 shares"):
        run.experiment(workspace, "tried", seeds=2, shard="1/3")
    with pytest.raises(UsageError, match="tuned in one run"):
        run.experiment(workspace, "tried", shard="1/2", tune=True)
    with pytest.raises(UsageError, match="meet those"):
        run.experiment(workspace, "tried", seeds=1001, tune=True)
    with pytest.raises(UsageError, match="gpt"):
        run.experiment(workspace, "tried", backbones=("gpt",))
    settings = dataclasses.replace(workspace.settings, benchmark=BenchmarkSettings(name="mllmu-bench"))
    with pytest.raises(UsageError, match="only portraits"):
        run.experiment(Workspace(workspace.root, settings), "tried", backbones=("llava",))
    with pytest.raises(MissingArtifact, match="does not exist"):
        run.read_results(workspace.path("experiments", "tried", run.RESULTS))


def _killed(*args: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_grid(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else works on a dead process's level: the grid would wait without end."""
    monkeypatch.setattr(grid, "_in_process", _killed)
    found = levels.levels_of(workspace, seeds=range(2), backbones=("llava",))
    pieces = grid.works(found, {"llava": EXPERIMENT})
    assert [piece.units for piece in pieces] == [2, 2]
    with pytest.raises(MachineFault, match="was killed"):
        grid.run(pieces, 2, progress=run.SILENT, advance=lambda amount: None, log=lambda event: None)


def test_a_longer_run_that_diverges_leaves_the_fixed_budget(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "evaluations": [{"step": 0, "columns": {"forget_vqa": 1.0}, "correct": {"forget_vqa": "0f"}}],
        "provenance": {"key": "k", "settings": {"learning_rate": 1e-4}},
        "steps": {"done": 1},
        "samples": {},
    }

    def row(*args: Any, budgets: int = 1, **kwargs: Any) -> Any:
        if budgets > 1:
            raise UnusableData("step 3: the forget loss is nan")
        return "ga", record, None

    told: list[str] = []
    monkeypatch.setattr(cells, "run_row", row)
    monkeypatch.setattr(cells, "scored", lambda *args, **kwargs: {"ga": {"correct": {}}})
    tell = cells.Told("x", told.append, lambda amount: None)
    cell = cells._cell(workspace, EXPERIMENT, GA_DIFF, 0, lambda evaluations: False, tell)
    assert "failed" not in cell
    assert cell["evaluations"] == record["evaluations"]
    assert told == ["x: GA_Diff, longer run: step 3: the forget loss is nan", "x: GA_Diff found"]


def test_a_share_writes_no_results(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[int] = []

    def some(pieces: Any, jobs: int, **kwargs: Any) -> list[Any]:
        worked.extend(level.seed for piece in pieces for level in piece.levels)
        return []

    monkeypatch.setattr(grid, "run", some)
    share = run.experiment(workspace, "tried", seeds=5, shard="2/2")
    assert share.results is None
    assert not share.path.exists()
    assert worked == [1, 3]


def test_tuned_on_other_seeds(grid_of_two: tuple[Workspace, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = grid_of_two  # the level that is compared is there
    monkeypatch.setattr(tuning, "SEEDS", (7,))
    monkeypatch.setattr(tuning, "FACTORS", (1.0, 2.0))
    monkeypatch.setattr(catalogue, "EXPERIMENTS", {"tried": dataclasses.replace(EXPERIMENT, rows=(GA,), compared="ga")})
    made = run.experiment(workspace, "tried", seeds=1, tune=True, jobs=1)
    assert made.path.parent.name == "tried-tuned"
    assert made.results is not None
    assert [level["seed"] for level in made.results["levels"]] == [0]
    chosen = made.results["tuned"]["llava"]
    assert [each["learning_rate"] for each in chosen["ga"]["tried"]] == [1e-4, 2e-4]
    for cell in made.results["cells"]:
        assert cell["learning_rate"] == chosen[cell["row"]]["learning_rate"]
    assert "on seeds 7" in made.path.with_name("table.md").read_text()


def test_a_missing_reference_fails_its_row_alone(workspace: Workspace) -> None:
    level = Workspace(workspace.root, workspace.settings)
    npo = paper.TABLE1.row("npo")
    told: list[str] = []
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise MissingArtifact("there is no model 'reference'", "mmsurgery train reference")

        patched.setattr(cells, "run_row", missing)
        tell = cells.Told("x", told.append, lambda amount: None)
        found = cells._cell(level, EXPERIMENT, npo, 0, lambda evaluations: True, tell)
        assert found == {"failed": "there is no reference model"}
        assert told == [f"x: NPO left out: there is no reference model (mmsurgery -w {level.root} train reference)"]
        with pytest.raises(MissingArtifact):
            cells._cell(level, EXPERIMENT, GA, 0, lambda evaluations: True, tell)


def test_a_model_made_again_is_shared_again(workspace: Workspace, tiny_llava: Path, tmp_path: Path) -> None:
    """Else the target of matched forgetting would stay that of the first gold model."""
    level = Workspace(tmp_path / "level", workspace.settings)
    gold = workspace.model_dir("gold")
    shutil.copytree(tiny_llava, gold)
    levels._share_model(workspace, level, "gold")
    assert os.path.samefile(gold / "model.safetensors", level.model_dir("gold") / "model.safetensors")
    scores = level.path("evals", "open", "gold.json")
    scores.parent.mkdir(parents=True)
    scores.write_text("{}")
    levels._share_model(workspace, level, "gold")
    assert scores.exists()
    weights = load_file(gold / "model.safetensors")
    weights[min(weights)] += 1
    (gold / "model.safetensors").unlink()
    save_file(weights, gold / "model.safetensors", {"format": "pt"})
    levels._share_model(workspace, level, "gold")
    assert not scores.exists()
    assert os.path.samefile(gold / "model.safetensors", level.model_dir("gold") / "model.safetensors")


def test_next_steps_are_about_the_level(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (level,) = levels.levels_of(workspace, seeds=[0], backbones=("llava",))

    def damaged(*args: Any, **kwargs: Any) -> Any:
        raise InputRefused("the weights are damaged", "mmsurgery train vanilla --force")

    monkeypatch.setattr(cells, "prepare", damaged)
    with pytest.raises(InputRefused, match="damaged") as caught:
        cells.run_level(level, EXPERIMENT, cells.Told("x", lambda text: None, lambda amount: None))
    step = caught.value.next_step
    assert step is not None
    assert step.startswith(f"mmsurgery -w {level.folder} train vanilla --force; or remove {level.folder}")

    def held(*args: Any, **kwargs: Any) -> Any:
        raise MachineFault("the workspace is in use", "wait for process 7")

    monkeypatch.setattr(cells, "prepare", held)
    with pytest.raises(MachineFault) as locked:
        cells.run_level(level, EXPERIMENT, cells.Told("x", lambda text: None, lambda amount: None))
    assert locked.value.next_step == "wait for process 7"


def test_sides_of_the_people_are_each_at_matched_forgetting() -> None:
    asked = {"forget_vqa": {"people": list("aabb"), "chance": 0.25}}
    start = {"gold": {"correct": {"forget_vqa": [False] * 4}}}
    points = [
        {"step": 0, "correct": {"forget_vqa": "0f"}},
        {"step": 8, "correct": {"forget_vqa": "0c"}},
    ]  # a is forgotten
    one, both = frozenset("a"), (frozenset("a"), frozenset("b"))
    assert cells._LongEnough(asked, start, (one,))(points)
    assert not cells._LongEnough(asked, start, both)(points)
    assert not cells._LongEnough(asked, start, ())(points)
    assert cells._LongEnough(asked, start, both)([points[0], {"step": 8, "correct": {"forget_vqa": "00"}}])
