"""What lies where a workspace keeps something of its own, and what it is told to write over."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import small

from mmsurgery.artifacts.digests import DigestCache
from mmsurgery.artifacts.files import write_json
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.errors import InputRefused, UsageError
from mmsurgery.evaluate.unfinished import Unfinished
from mmsurgery.paths import home_expanded
from mmsurgery.provenance import provenance, seal
from mmsurgery.settings import SETTINGS_FILE, Settings

MAKE = ("mask", "--beta", "0.5", "--modules", "lm,connector")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> small.Place:
    root = tmp_path_factory.mktemp("odd")
    place = small.place(root / "here", small.models(root / "models")["llava"])
    for command in (("saliency", "--set", "forget,preserve"), MAKE):
        assert place.run(*command).code == 0
    return place


@pytest.fixture
def place(measured: small.Place, tmp_path: Path) -> small.Place:
    return measured.copy(tmp_path / "copy")


def last(ran: small.Ran, code: int) -> str:
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    return ran.err.splitlines()[-1]


@pytest.mark.parametrize("name", [".lock.holder", "journal.jsonl"])
def test_a_link_in_the_place_of_a_file_is_not_written_through(place: small.Place, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (place.root / name).unlink(missing_ok=True)
    (place.root / name).symlink_to(victim)
    ran = place.run(*MAKE, "--name", "other")
    assert victim.read_text() == "precious"
    if name == "journal.jsonl":
        assert last(ran, 6).startswith(f"error[6]: cannot write {place.root / name}: ")


@pytest.mark.parametrize("name", [".lock.holder", "journal.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(place: small.Place, name: str) -> None:
    (place.root / name).unlink(missing_ok=True)
    os.mkfifo(place.root / name)
    ran = place.run(*MAKE, "--name", "other")
    if name == "journal.jsonl":
        assert "is not a regular file" in last(ran, 6)
    else:
        assert ran.code == 0


@pytest.mark.parametrize("room", ["masks", "saliency"])
@pytest.mark.parametrize("how", ["file", "link"])
def test_a_file_in_the_place_of_a_folder_is_named(place: small.Place, room: str, how: str) -> None:
    (place.root / room).rename(place.root / "away")
    (place.root / room).write_text("") if how == "file" else (place.root / room).symlink_to("nowhere")
    ran = place.run("saliency", "--set", "forget") if room == "saliency" else place.run(*MAKE, "--name", "other")
    assert f"{place.root / room} is no folder - next: move it away" in last(ran, 6)


def test_links_in_a_circle(place: small.Place) -> None:
    weights = place.vanilla / "model.safetensors"
    weights.unlink()
    weights.symlink_to(weights.name)
    assert "model.safetensors" in last(place.run("verify"), 3)


def test_folders_of_interrupted_runs_are_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "step-00000001.safetensors").write_text("theirs")
    (tmp_path / ".resume-x").symlink_to(outside)
    (tmp_path / ".scoring").symlink_to(outside)
    origin = provenance("apply", {}, {})
    with pytest.raises(InputRefused, match=r"\.resume-x is a link"):
        Snapshots(tmp_path / ".resume-x", origin)
    with pytest.raises(InputRefused, match=r"\.scoring is a link"):
        Unfinished(tmp_path / ".scoring" / "m", print).begin(origin, "again", force=True)
    assert [path.name for path in outside.iterdir()] == ["step-00000001.safetensors"]


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_inspect_writes_over_its_own_kind_alone(place: small.Place, tmp_path: Path, option: str) -> None:
    weights = place.vanilla / "model.safetensors"
    before = weights.read_bytes()
    line = last(place.run("inspect", "default", option, str(weights)), 2)
    assert line.endswith("model.safetensors is there, and is something else - next: name another file, or move it away")
    assert weights.read_bytes() == before
    own = str(tmp_path / "own.png")
    assert [place.run("inspect", "default", option, own).code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("name", [SETTINGS_FILE, "data/rows.jsonl", "models/vanilla/config.json", "masks/new.npz"])
def test_nothing_is_exported_into_what_the_workspace_keeps(place: small.Place, name: str) -> None:
    out = str(place.root / name)
    line = last(place.run("export", "default", "--format", "numpy", "--out", out, "--force"), 2)
    assert "is where the workspace keeps its " in line


@pytest.mark.parametrize("damage", ["deep", "pipe"])
def test_a_cache_of_digests_that_cannot_be_read_costs_time_alone(tmp_path: Path, damage: str) -> None:
    cache = DigestCache()
    cache._path = tmp_path / "digests.json"
    if damage == "deep":
        cache._path.write_text("[" * 200_000)
    else:
        os.mkfifo(cache._path, 0o600)
    cache._path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    (tmp_path / "file").write_text("x")
    assert len(cache.sha256(tmp_path / "file")) == 64


def test_a_journal_of_odd_lines(place: small.Place) -> None:
    with (place.root / "journal.jsonl").open("a") as stream:
        stream.write("[" * 200_000)
    assert place.run(*MAKE, "--name", "other").code == 0
    assert place.run("report").code == 0


@pytest.mark.parametrize("inputs", [None, [], "x", 5])
def test_verify_lists_a_record_that_does_not_say_what_it_was_made_of(place: small.Place, inputs: object) -> None:
    assert place.run("diff", "vanilla", "vanilla").code in (0, 2)
    path = place.root / "diffs" / "a..b.json"
    origin = {**provenance("diff", {}, {}), "inputs": inputs}
    write_json(path, seal({"schema": 1, "kind": "diff", "before": "a", "after": "b", "provenance": origin}))
    assert "a..b.json" in last(place.run("verify"), 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed = " + "9" * 5000, "is not valid TOML"),
        ("seed = " + "[" * 5000, "is not valid TOML"),
        ("threads = 4000000", "recipe.threads is 4000000, should be at most 1,024"),
    ],
)
def test_settings_beyond_what_can_be_read(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings.from_toml(f"[recipe]\n{line}\n", "x")


def test_a_path_with_a_nul_character() -> None:
    with pytest.raises(UsageError, match=r"benchmark\.data holds a NUL character"):
        Settings.from_toml('[benchmark]\ndata = "a\\u0000b"\n', "x")


def test_the_home_of_nobody() -> None:
    with pytest.raises(UsageError, match="no home folder for ~nosuchuser/x - next: write the path in full"):
        home_expanded("~nosuchuser/x")


@pytest.mark.parametrize(
    "command",
    [
        ("apply", "--method", "ga", "--seed", "-1"),
        ("mask", "--beta", "1", "--control", "random", "--seed", str(1 << 40), "--name", "r"),
        ("apply", "--method", "ga", "--lora-rank", "99999999999"),
        ("eval", "a" * 3000),
    ],
)
def test_numbers_and_names_that_nothing_can_have(place: small.Place, command: tuple[str, ...]) -> None:
    assert len(last(place.run(*command), 2)) < 400


def test_a_mask_of_a_preserve_set_that_has_changed_is_noted(place: small.Place) -> None:
    rows = small.rows()
    pictured = next(row for row in rows if row["role"] == "retain" and "image" in row)
    pictured["answer"] = "rice" if pictured["answer"] != "rice" else "soup"
    place.write_rows(rows)
    ran = place.run("apply", "--method", "mmunlearner", "--epochs", "1", "--name", "made")
    assert ran.code == 0, ran.err
    assert "the mask was made when retain_vqa held other data" in ran.err


PROGRAM = "import os, signal, sys; {before}; from mmsurgery_cli.main import main; sys.argv = {argv}; main()"


def shell(before: str, argv: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(before=before, argv=["mmsurgery", *argv])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_a_signal_that_nohup_had_ignored_stays_ignored(place: small.Place) -> None:
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    after = "import atexit; atexit.register(lambda: print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN))"
    ran = shell(f"{before}; {after}", ["-w", str(place.root), "status"])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("True\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_command_is_loaded(name: str) -> None:
    code = (
        "import builtins, os, signal; real = builtins.__import__\n"
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"
        "def slow(name, *rest):\n"
        f"    if name == 'mmsurgery_cli.main': os.kill(os.getpid(), signal.{name})\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = slow\n"
        "from mmsurgery_cli.__main__ import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 128 + getattr(signal, name)
    assert ran.stderr == f"interrupted ({name}) - next: run the same command again; nothing was begun\n"


def test_letters_that_the_output_has_not(measured: small.Place, tmp_path: Path) -> None:
    place = measured.copy(tmp_path / "數é")
    ran = shell("pass", ["-w", str(place.root), "status"], PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert "\\u6578" in ran.stdout
    ran = shell("pass", ["-w", str(place.root), "status", "--json"], PYTHONIOENCODING="ascii")
    assert json.loads(ran.stdout)["root"].endswith("數é")


def test_a_path_that_is_no_text(measured: small.Place, tmp_path: Path) -> None:
    place = measured.copy(tmp_path / os.fsdecode(b"\xff"))
    ran = place.run("status", "--json")
    assert ran.code == 0, ran.err
    status = json.loads(ran.out)
    assert status["problems"] == []
    assert "report it" not in status["next_command"]
    assert place.run("verify").code == 0
    assert place.run("mask", "--name", "again").code == 0
    ran = place.run("saliency", "--set", "forget_vqa", "--force")  # the tokenizers' library opens UTF-8 alone
    assert ran.code == 2
    assert ran.err.endswith("its path is not UTF-8 - next: rename the folder\n")
