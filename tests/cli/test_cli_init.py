"""`init`: what it refuses, and that nothing is left behind then."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert "benchmark.forget is 10, not 5, benchmark.draw is 0, not 2" in err
    assert (portraits / SETTINGS_FILE).read_bytes() == before
    assert Settings.read(portraits / SETTINGS_FILE).models.backbone == "llava"
