"""Files appear whole or not at all, whatever fails; what is read is checked first."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.artifacts import files
from mmsurgery.artifacts.files import (
    atomic_file,
    atomic_folder,
    check_space,
    given_path,
    read_bytes,
    read_json,
    regular_file,
    write_bytes,
    write_json,
    write_pretty_json,
)
from mmsurgery.errors import InputRefused, MachineFault, Mismatch, MissingArtifact, UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.txt").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


# writing


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.bin"
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"abc")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
    assert path.read_bytes() == b"abc"
    assert names(path.parent) == ["x.bin"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "x", b"x")
        with atomic_folder(tmp_path / "folder") as temporary:
            fill(temporary, "x")
    finally:
        os.umask(before)
    mode = {
        p: stat.S_IMODE(p.stat().st_mode)
        for p in [tmp_path / "x", *(tmp_path / "folder").rglob("*"), tmp_path / "folder"]
    }
    for path, found in mode.items():
        assert found == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_link_at_the_place_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "x").symlink_to(victim)
    write_bytes(tmp_path / "x", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_folder_where_a_file_should_go(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(MachineFault, match="is a folder"):
        write_bytes(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(MachineFault, match="cannot write"):
        write_bytes(tmp_path / "x" / "y", b"new")


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_appears_whole(replace: bool, tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made", replace=replace) as temporary:
        fill(temporary, "new")
        assert not (tmp_path / "made").exists()
    assert content(tmp_path / "made") == {"a.txt": "new", "sub/b.txt": "new"}
    assert names(tmp_path) == ["made"]


def test_an_existing_folder_is_refused_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    fill(tmp_path / "made", "old")
    with pytest.raises(Mismatch, match="exists"), atomic_folder(tmp_path / "made"):
        pytest.fail("entered")
    with atomic_folder(tmp_path / "made", replace=True) as temporary:
        (temporary / "c.txt").write_text("new")
        assert content(tmp_path / "made")["a.txt"] == "old"
    assert content(tmp_path / "made") == {"c.txt": "new"}
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "made", replace=True):
        raise ZeroDivisionError
    assert content(tmp_path / "made") == {"c.txt": "new"}
    assert names(tmp_path) == ["made"]


def test_a_file_can_be_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"old")
    with atomic_folder(tmp_path / "made", replace=True) as temporary:
        fill(temporary, "new")
    assert (tmp_path / "made").is_dir()
    assert names(tmp_path) == ["made"]


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without renameat2."""
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *args, **kwargs: object())


@pytest.mark.parametrize("exchange", [True, False])
def test_whatever_call_fails_the_old_stays_and_nothing_is_left(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th file-system call fails, for n = 1, 2, ... until none is left to fail."""
    if not exchange:
        no_exchange(monkeypatch)
    errors: list[MachineFault] = []
    for which in range(1, 100):
        folder = tmp_path / str(which)
        (folder / "made").mkdir(parents=True)
        fill(folder / "made", "old")
        (folder / "x").write_bytes(b"old")
        calls = 0

        def failing(real: Callable[..., Any], fatal: int = which) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == fatal:
                    raise OSError(28, "No space left on device")
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename"):
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                with atomic_folder(folder / "made", replace=True) as temporary:
                    fill(temporary, "new")
                write_bytes(folder / "x", b"new")
            except MachineFault as error:
                errors.append(error)
            else:
                break
        assert names(folder) == ["made", "x"], which
        assert content(folder / "made")["a.txt"] in ("old", "new")
        assert len(set(content(folder / "made").values())) == 1
        assert (folder / "x").read_bytes() in (b"old", b"new")
    assert len(errors) >= 6
    assert all(error.code == 6 and "free some disk space" in str(error.next_step) for error in errors)
    assert content(folder / "made")["a.txt"] == "new"


KILLED = """
import os, sys
from pathlib import Path
from mmsurgery.artifacts.files import atomic_file, atomic_folder
with atomic_folder(Path(sys.argv[1]), replace=True) as temporary:
    (temporary / "big").write_bytes(b"x")
    with atomic_file(Path(sys.argv[2])) as other:
        other.write_bytes(b"half")
        os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "npo").mkdir()
    write_bytes(tmp_path / "x", b"old")
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "npo"), str(tmp_path / "x")], check=False)
    assert result.returncode == -signal.SIGKILL
    left = set(names(tmp_path)) - {"npo", "x"}
    assert len(left) == 2
    assert all(name.startswith(".") for name in left)
    assert (tmp_path / "x").read_bytes() == b"old"
    with atomic_folder(tmp_path / "npo-2") as temporary:
        (temporary / "a").write_bytes(b"x")
    assert left < set(names(tmp_path))
    with atomic_folder(tmp_path / "npo", replace=True):
        pass
    write_bytes(tmp_path / "x", b"new")
    assert names(tmp_path) == ["npo", "npo-2", "x"]


def test_leftovers_of_other_names_are_not_ours(tmp_path: Path) -> None:
    for name in (
        ".partial-npo-2-abcdefgh",
        ".partial-npo.safetensors-abcdefgh",
        ".partial-np",
        ".partial-[a]-abcdefgh",
    ):
        (tmp_path / name).write_bytes(b"x")
    write_bytes(tmp_path / "npo", b"x")
    write_bytes(tmp_path / "a", b"x")
    assert len(names(tmp_path)) == 6
    write_bytes(tmp_path / "[a]", b"x")
    assert ".partial-[a]-abcdefgh" not in names(tmp_path)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from mmsurgery.artifacts.files import write_bytes
from mmsurgery.errors import MachineFault
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"x" * 5000)
except MachineFault as error:
    print(error.line())
"""


def test_a_file_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE is not None
    path = tmp_path / "x"
    write_bytes(path, b"old")
    result = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"error[6]: cannot write {path}: File too large - next: ")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["数据 é 🙂", "50%", "a" * 200, "line\nbreak", " "])
def test_names_of_any_kind(name: str, tmp_path: Path) -> None:
    write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_json_is_canonical_or_pretty(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "é"}
    write_json(tmp_path / "c.json", value)
    write_pretty_json(tmp_path / "p.json", value)
    assert (tmp_path / "c.json").read_bytes() == '{"a":"é","b":[1,2.5,null]}\n'.encode()
    assert (tmp_path / "p.json").read_text().startswith('{\n  "b": [')
    assert read_json(tmp_path / "c.json") == read_json(tmp_path / "p.json") == value


# reading


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "lfs").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "html").write_bytes(b"\n <!DOCTYPE HTML><html>")
    (tmp_path / "page").write_bytes(b"<html lang=en>")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    reasons = {
        "fifo": "not a regular file",
        "empty": "is empty",
        "lfs": "Git LFS pointer",
        "html": "HTML page",
        "page": "HTML page",
        "loop": "cannot be read",
        ".": "not a regular file",
        "x" * 300: "cannot be read",
        "/dev/zero": "not a regular file",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputRefused, match=reason):
            read_bytes(tmp_path / name)
    for name in ("gone", "nowhere", "empty/below"):
        with pytest.raises(MissingArtifact):
            regular_file(tmp_path / name)


def test_files_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputRefused, match="Permission denied"):
        regular_file(path)


def test_a_limit_on_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", limit=5) == b"12345"
    with pytest.raises(InputRefused, match="larger than 4 bytes"):
        read_bytes(tmp_path / "x", limit=4)


# digests


def test_a_folder_that_a_person_mistyped_is_not_made(tmp_path: Path) -> None:
    assert given_path(tmp_path / "x.png") == tmp_path / "x.png"
    assert given_path(Path("x.png")) == Path("x.png")
    with pytest.raises(UsageError, match="no folder"):
        given_path(tmp_path / "none" / "x.png")
    assert not (tmp_path / "none").exists()


def test_room_on_the_disk(tmp_path: Path) -> None:
    check_space(tmp_path / "a" / "b", 1, "a test")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(MachineFault, match=r"needs 1,000,000,000,000,000,000 bytes for a test, [\d,]+ are free"):
        check_space(tmp_path, 10**18, "a test")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(MachineFault):
        check_space(tmp_path / "file" / "x", 1, "a test")


def test_a_folder_is_tried_by_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks share a folder: one takes another's probe for a leftover, which is then tried again."""
    touch, taken = Path.touch, []

    def touched(self: Path) -> None:
        if len(taken) < 3:
            taken.append(self)
            files.remove_leftovers(tmp_path, "probe")
        touch(self)

    monkeypatch.setattr(Path, "touch", touched)
    check_space(tmp_path, 0, "nothing")
    assert len(taken) == 3
    assert names(tmp_path) == []
    monkeypatch.setattr(files, "_PROBES", 2)
    taken.clear()
    with pytest.raises(MachineFault):
        check_space(tmp_path, 0, "nothing")
