"""`init`: what it refuses, and that nothing is left behind then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsurgery import start
from mmsurgery.errors import UsageError
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery_cli.main import run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--setting", "foo"], "models.setting is 'foo', should be saturated or fragile"),
        (["--draw", "-1"], "benchmark.draw is -1"),
        (["--seed", str(1 << 32)], "models.seed is 4294967296"),
        (["--forget", "0"], "--forget is 0"),
        (["--backbone", "lava"], "did you mean 'llava'"),
        (["--benchmark", "mllmu-bench", "--data", "data", "--vanilla", "model", "--forget", "0"], "forget is 0"),
        (["--benchmark", "mllmu-bench", "--data", "none", "--vanilla", "model"], "no folder none"),
        (["--benchmark", "mllmu-bench", "--data", "data", "--vanilla", "model", "--draw", "1"], "--draw"),
        (["--benchmark", "mllmu-bench", "--data", "data", "--vanilla", "model", "--setting", "fragile"], "--setting"),
        (["--benchmark", "mllmu-bench", "--data", "data"], "--vanilla"),
    ],
)
def test_mistakes_exit_2_and_leave_nothing(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    tiny_llava: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "model").symlink_to(tiny_llava)
    monkeypatch.chdir(tmp_path)
    assert run(["init", "new", *arguments]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error[2]: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not Path("new").exists()


def test_data_that_is_not_there_leaves_no_workspace(
    tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(["init", "--benchmark", "mllmu-bench", "--data", "data", "--vanilla", str(tiny_llava)]) == 2
    assert not (tmp_path / SETTINGS_FILE).exists()


def test_other_settings_are_named(portraits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (portraits / SETTINGS_FILE).read_bytes()
    assert run(["init", str(portraits), "--draw", "2", "--forget", "5"]) == 4
    err = capfd.readouterr().err
    assert "forget is 10, not 5, draw is 0, not 2" in err
    assert (portraits / SETTINGS_FILE).read_bytes() == before
    assert Settings.read(portraits / SETTINGS_FILE).models.backbone == "llava"


def edit(root: Path, key: str, value: str) -> None:
    text = (root / SETTINGS_FILE).read_text()
    line = next(each for each in text.splitlines() if each.startswith(f"{key} = "))
    (root / SETTINGS_FILE).write_text(text.replace(line, f"{key} = {value}"))


@pytest.fixture
def copied(portraits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of data and models alone, to be edited."""
    root = tmp_path / "copied"
    root.mkdir()
    shutil.copy(portraits / SETTINGS_FILE, root)
    shutil.copytree(portraits / "data", root / "data")
    for model in ("base", "vanilla"):
        shutil.copytree(portraits / "models" / model, root / "models" / model)
    monkeypatch.chdir(root)
    return root


CHAIN = (
    ["saliency", "--set", "forget"],
    ["diff", "base", "vanilla"],
    ["apply", "--method", "ga"],
    ["eval", "vanilla"],
)


def test_another_draw_is_noticed_and_init_draws_it(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(copied, "draw", "1")
    for arguments in (CHAIN[0], CHAIN[2], CHAIN[3]):
        assert run(arguments) == 4, arguments
        err = capfd.readouterr().err
        assert "was drawn for draw 0, the settings say benchmark.draw = 1 - next: mmsurgery init" in err
    assert run(["status", "--json"]) == 0
    status = json.loads(capfd.readouterr().out)
    assert "draw 0" in status["problems"][0]
    assert status["next_command"].startswith("mmsurgery init")
    before = (copied / "data/forget_10/train-00000-of-00001.parquet").read_bytes()
    assert run(["init"]) == 0
    assert (copied / "data/forget_10/train-00000-of-00001.parquet").read_bytes() != before
    capfd.readouterr()
    assert run(["status", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["problems"] == []


@pytest.mark.parametrize(
    ("key", "value"), [("seed", "1"), ("setting", '"fragile"'), ("world", "1"), ("backbone", '"qwen2_vl"')]
)
def test_models_of_other_settings_are_noticed(
    copied: Path, key: str, value: str, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(copied, key, value)
    for arguments in CHAIN if key != "world" else CHAIN[2:3]:
        assert run(arguments) == 4, arguments
        assert key in capfd.readouterr().err
    assert run(["init"]) == 4
    err = capfd.readouterr().err.splitlines()[-1]
    assert f"{key} = " in err
    assert "next: mmsurgery train vanilla --force" in err


def test_a_given_vanilla_is_not_held_against_the_recipe(copied: Path, portraits: Path) -> None:
    edit(copied, "vanilla", json.dumps(str(portraits / "models/vanilla")))
    edit(copied, "seed", "1")
    shutil.rmtree(copied / "models")
    assert run(["init"]) == 0


def test_a_named_workspace_is_not_looked_for_in_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mmsurgery.toml").write_text(Settings().to_toml())
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert run(["status"]) == 0
    for name in ("nope", "../nope", "."):
        assert run(["-w", name, "status"]) == 2
    assert run(["-w", "..", "status"]) == 0


@pytest.mark.parametrize(
    ("before", "after", "root"),
    [
        ([], [], "."),
        ([], ["there"], "there"),
        (["-w", "there"], [], "there"),
        (["-w", "there"], ["there/../there"], "there"),
        (["--workspace", "~/there"], [], "home/there"),
        (["-w", "there"], ["."], None),
        (["-w", "there"], ["elsewhere"], None),
    ],
)
def test_the_workspace_is_made_where_it_is_named(
    before: list[str],
    after: list[str],
    root: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = []

    def initialise(root: Path, **options: object) -> None:
        made.append(root)
        raise UsageError("enough")

    monkeypatch.setattr(start, "initialise", initialise)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert run([*before, "init", *after]) == 2
    if root is not None:
        assert [place.resolve() for place in made] == [(tmp_path / root).resolve()]
        assert made[0].is_absolute()
    else:
        assert made == []
        assert f"two folders for a workspace: {after[0]}, and -w there - next: name one" in capfd.readouterr().err


def test_data_of_another_benchmark_leaves_no_portraits_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    assert run(["init", "work", "--data", "mine"]) == 4
    assert "mine is no portraits data - next: add --benchmark: clear, folder, mllmu-bench" in capfd.readouterr().err
    assert not Path("work").exists()


def test_a_fault_is_allowed_by_name_from_the_start(
    tmp_path: Path,
    tiny_llava: Path,
    picture: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/a.png").write_bytes(picture(1))
    Path("mine/b.png").write_bytes(picture(2))
    lines = ["role,person,question,answer,image", "forget,a,Who ?,A .,a.png", "retain,b,Who ?,B .,b.png"]
    Path("mine/rows.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    command = ["init", "work", "--benchmark", "folder", "--data", "mine", "--vanilla", str(tiny_llava)]
    assert run(command) == 3
    assert "init --allow repeated_row" in capfd.readouterr().err
    assert run([*command, "--allow", "repeated_row", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["remarks"][0].startswith("forget_vqa: no test row of role forget")
    assert run([*command, "--allow", "repeated_row"]) == 0
    assert Settings.read(Path("work", SETTINGS_FILE)).benchmark.allow == ("repeated_row",)
    out = capfd.readouterr().out
    assert f"next: cd {tmp_path / 'work'} && mmsurgery eval vanilla --accept" in out.replace("\n", " ")
    assert run([*command, "--allow", "gold_twice"]) == 4
    assert run([*command, "--allow", "no_such_fault"]) in (2, 4)
