"""The workspace: settings that are checked, one writer, a journal that survives kills, where things lie."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsurgery.errors import InputRefused, MachineFault, Mismatch, MissingArtifact, NoWorkspace, UsageError
from mmsurgery.settings import SETTINGS_FILE, BenchmarkSettings, ModelSettings, RecipeSettings, Settings
from mmsurgery.workspace import SILENT, Workspace, find_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, Settings())


# settings

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)


@given(texts, texts, st.lists(texts, max_size=3), st.floats(1e-12, 0.9), st.integers(1, 99))
def test_settings_are_read_as_they_are_written(
    name: str, data: str, allow: list[str], rate: float, forget: int
) -> None:
    settings = Settings(
        benchmark=BenchmarkSettings(name=name, data=data, allow=tuple(allow), forget=forget),
        models=ModelSettings(setting="fragile", seed=7),
        recipe=RecipeSettings(learning_rate=rate, weight_decay=3.0),
    )
    text = settings.to_toml()
    assert Settings.from_toml(text, "here") == settings
    assert tomllib.loads(text)["schema"] == 1


def test_an_empty_file_means_the_defaults() -> None:
    assert Settings.from_toml("", "here") == Settings()
    assert Settings.from_toml("schema = 1\n[recipe]\nweight_decay = 1\n", "here").recipe.weight_decay == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[benchmark", "not valid TOML"),
        ("[recipes]", "unknown key 'recipes' (did you mean 'recipe'?)"),
        ("recipe = 3", "unknown key 'recipe'"),
        ("[recipe]\nlearning_rat = 1", "unknown key 'learning_rat' (did you mean 'learning_rate'?) in [recipe]"),
        ("[recipe]\nlearning_rate = '1'", "recipe.learning_rate should be a number, is '1'"),
        ("[recipe]\nlearning_rate = 0", "should be between 0 and 1"),
        ("[recipe]\nlearning_rate = nan", "should be between 0 and 1"),
        ("[recipe]\nweight_decay = inf", "should be 0 or more"),
        (f"[recipe]\nweight_decay = {10**400}", "recipe.weight_decay should be a number"),
        ("[recipe]\nepochs = 0", "recipe.epochs is 0, should be 1 or more"),
        ("[recipe]\nepochs = true", "recipe.epochs should be a whole number, is True"),
        ("[recipe]\nepochs = 1.0", "recipe.epochs should be a whole number"),
        ("[recipe]\nseed = -1", "recipe.seed is -1, should be 0 or more"),
        ("[benchmark]\nforget = 100", "should be a percentage"),
        ("[benchmark]\nallow = 'x'", "benchmark.allow should be a list of texts"),
        ("[benchmark]\nallow = [1]", "benchmark.allow should be a list of texts"),
        ("[models]\nsetting = 'strong'", "saturated or fragile"),
    ],
)
def test_faults_of_settings(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.from_toml(text, "here")
    assert words in str(caught.value)
    assert caught.value.what.startswith("here")
    assert "\n" not in caught.value.line()


def test_settings_of_a_newer_version_are_no_mistake_of_the_user() -> None:
    """Case 34."""
    with pytest.raises(Mismatch, match="here has schema 2, this version reads 1 - next: pip install -U mmsurgery"):
        Settings.from_toml("schema = 2\n[new]\nkey = 1", "here")


def test_all_faults_are_reported_together() -> None:
    text = "[recipe]\nepoch = 1\nthreads = 0\nseed = 'x'\n[models]\nsetting = 'y'\n[more]\n"
    with pytest.raises(UsageError) as caught:
        Settings.from_toml(text, "here")
    for words in ("[1]", "[5]", "'epoch'", "recipe.threads is 0", "recipe.seed should be", "models.setting", "'more'"):
        assert words in caught.value.what


# finding it


def test_the_nearest_parent_with_settings(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text("[recipe]\nepochs = 7\n")
    deep = tmp_path / "models" / "vanilla"
    deep.mkdir(parents=True)
    found = find_workspace(deep)
    assert (found.root, found.settings.recipe.epochs) == (tmp_path, 7)
    (tmp_path / "models" / SETTINGS_FILE).write_text("")
    assert find_workspace(deep).root == tmp_path / "models"


def test_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(NoWorkspace) as caught:
        find_workspace(tmp_path)
    assert (caught.value.code, caught.value.next_step) == (2, "mmsurgery init")


def test_settings_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(InputRefused):
        find_workspace(tmp_path)


# where things lie


def test_paths(workspace: Workspace) -> None:
    root = workspace.root
    assert workspace.mask_path("a.b") == root / "masks" / "a.b.safetensors"
    assert workspace.model_dir("npo") == root / "models" / "npo"
    assert workspace.saliency_dir("forget_vqa") == root / "saliency" / "forget_vqa"
    assert workspace.saliency_dir("forget_vqa", "batch", 4) == root / "saliency" / "forget_vqa.batch-4"
    assert workspace.saliency_dir("forget_vqa", "dataset", 4) == root / "saliency" / "forget_vqa.dataset"
    assert workspace.eval_path("npo") == root / "evals" / "npo.json"
    assert workspace.diff_path("vanilla", "npo") == root / "diffs" / "vanilla..npo.json"
    assert workspace.data_dir == root / "data"


@pytest.mark.parametrize("name", ["../x", "/etc/x", ".hidden", "a/b", ""])
def test_no_name_leads_out(name: str, workspace: Workspace) -> None:
    for make in (
        workspace.mask_path,
        workspace.model_dir,
        workspace.saliency_dir,
        workspace.eval_path,
        lambda name: workspace.diff_path("vanilla", name),
    ):
        with pytest.raises(UsageError):
            make(name)


def test_models_follow_the_settings(tmp_path: Path) -> None:
    away = tmp_path / "away"
    settings = Settings(models=ModelSettings(vanilla=str(away), base="checkpoints/base"))
    workspace = Workspace(tmp_path / "ws", settings)
    assert workspace.model_dir("vanilla") == away
    assert workspace.model_dir("base") == tmp_path / "ws" / "checkpoints" / "base"
    assert workspace.models() == []
    for folder in (
        away,
        workspace.path("models", "npo"),
        workspace.path("models", ".partial-x"),
        workspace.path("models", "ga"),
    ):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    workspace.path("models", "empty").mkdir()
    assert workspace.models() == ["vanilla", "ga", "npo"]
    assert workspace.existing_model("npo") == workspace.path("models", "npo")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("vanilla", "mmsurgery init"),
        ("gold", "mmsurgery train gold"),
        ("reference", "mmsurgery train reference"),
        ("npp", "did you mean 'npo'?"),
        ("zzzzzz", "there is: npo"),
    ],
)
def test_a_model_that_is_missing(name: str, command: str, workspace: Workspace) -> None:
    workspace.path("models", "npo").mkdir(parents=True)
    workspace.path("models", "npo", "config.json").write_text("{}")
    with pytest.raises(MissingArtifact, match=name) as caught:
        workspace.existing_model(name)
    assert caught.value.next_step == command


def test_masks_that_exist(workspace: Workspace) -> None:
    assert workspace.masks() == []
    workspace.path("masks").mkdir()
    for name in ("b", "a.x", ".partial-c"):
        workspace.path("masks", f"{name}.safetensors").write_bytes(b"x")
    assert workspace.masks() == ["a.x", "b"]


# one writer

HOLD = """
import sys, time
from pathlib import Path
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace
with Workspace(Path(sys.argv[1]), Settings()).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_writer_and_a_killed_one_frees_itself(workspace: Workspace) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(workspace.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        begin = time.perf_counter()
        with (
            pytest.raises(MachineFault, match=rf"in use by pid {process.pid} on host .* since \d\d:\d\d"),
            workspace.lock(),
        ):
            pytest.fail("entered")
        assert 1.5 < time.perf_counter() - begin < 4
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with workspace.lock():
        assert f"pid {process.pid} " not in workspace.path(".lock.holder").read_text()
    assert not workspace.path(".lock.holder").exists()
    with workspace.lock():
        pass


def test_a_lock_is_freed_when_its_holder_cannot_be_noted(workspace: Workspace) -> None:
    workspace.path(".lock.holder").mkdir()
    with pytest.raises(MachineFault, match="cannot write"), workspace.lock():
        pytest.fail("entered")
    workspace.path(".lock.holder").rmdir()
    with workspace.lock():
        pass


def test_a_workspace_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineFault, match="cannot lock"), Workspace(tmp_path / "file" / "x", Settings()).lock():
        pytest.fail("entered")


# the journal


def test_the_journal_keeps_whole_lines(workspace: Workspace) -> None:
    assert workspace.journal_entries() == []
    workspace.journal("mask", name="é\n", selected=3)
    path = workspace.path("journal.jsonl")
    with path.open("ab") as stream:
        stream.write(b'{"event": "torn", "na')
    workspace.journal("apply", name="npo")
    with path.open("ab") as stream:
        stream.write(b'\xff\xfe\n[1]\n{"no": "event"}\n')
    workspace.journal("eval")
    assert [(e["event"], e.get("name")) for e in workspace.journal_entries()] == [
        ("mask", "é\n"),
        ("apply", "npo"),
        ("eval", None),
    ]
    assert workspace.journal_entries()[0]["time"].startswith("20")


def test_a_journal_that_cannot_be_written(workspace: Workspace) -> None:
    workspace.path("journal.jsonl").mkdir()
    with pytest.raises(MachineFault, match="cannot write"):
        workspace.journal("mask")


def test_silence() -> None:
    with SILENT.stage("x", 3) as advance:
        advance(1)
    SILENT.note("x")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().recipe = RecipeSettings()  # type: ignore[misc]
    values: dict[str, Any] = dataclasses.asdict(Settings())
    assert set(values) == {"benchmark", "models", "recipe"}


def test_a_journal_that_cannot_be_written_is_noticed_before_the_work(workspace: Workspace) -> None:
    workspace.path("journal.jsonl").mkdir()
    with pytest.raises(MachineFault, match=r"cannot write .*journal"), workspace.lock():
        pytest.fail("entered")
