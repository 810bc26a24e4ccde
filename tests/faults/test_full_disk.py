"""Case 50: a disk that is full, or takes no file of this size: exit 6, what was there stays, the next run succeeds."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
from campaigns import small, verbs

from mmsurgery.artifacts import files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> small.Place:
    return verbs.chain(tmp_path_factory.mktemp("full") / "ws", "llava")


@pytest.mark.parametrize("verb", ["saliency", "apply"])
def test_a_limit_of_file_sizes(verb: str, place: small.Place, tmp_path: Path) -> None:
    copied, said = place.copy(tmp_path / "ws"), tmp_path / "said"
    before = verbs.state(copied.root)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        return verbs.work(copied, verb)

    assert verbs.ended(verbs.fork(limited, said)) == 6
    line = said.read_text().strip().splitlines()[-1]
    assert line.startswith("error[6]: cannot write ")
    assert line.endswith("File too large - next: raise the file size limit (ulimit -f)")
    assert verbs.mixed(verbs.state(copied.root), before, before) == []
    assert verbs.command(copied, verb).code == 0
    assert verbs.leftovers(copied.root) == []


def mounted(arguments: Sequence[str]) -> str | None:
    """Why a mount fails, None where it does not."""
    done = subprocess.run(arguments, capture_output=True, text=True)
    return done.stderr.strip() or "failed" if done.returncode else None


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or (why := mounted(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)])):
        pytest.skip(f"no file system of a few MB can be mounted here: {why if shutil.which('mount') else 'no mount'}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("noticed", ["before", "while writing"])
@pytest.mark.parametrize("verb", ["saliency", "apply"])
def test_a_disk_of_a_few_megabytes(verb: str, noticed: str, place: small.Place, tiny_disk: Path) -> None:
    copied = place.copy(tiny_disk / "ws")
    before = verbs.state(copied.root)
    ballast = tiny_disk / "ballast"
    with ballast.open("wb") as stream:
        stream.write(b"\0" * (shutil.disk_usage(tiny_disk).free - 65536))
    room = mock.patch.object(files.shutil, "disk_usage", return_value=mock.Mock(free=1 << 40))
    if noticed == "before":
        ran = copied.run(*verbs.COMMANDS[verb])
        assert "bytes for" in ran.err
    else:
        with room:
            ran = copied.run(*verbs.COMMANDS[verb])
        assert "No space left on device - next: free some disk space" in ran.err
    assert ran.code == 6
    assert ran.err.count("error[6]") == 1
    assert "Traceback" not in ran.err
    assert verbs.mixed(verbs.state(copied.root), before, before) == []
    ballast.unlink()
    assert verbs.command(copied, verb).code == 0
    assert verbs.leftovers(copied.root) == []
