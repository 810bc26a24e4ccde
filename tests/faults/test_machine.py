"""Cases 7, 56, 59, 60, 62, 63: signals, inputs cut or changed meanwhile, unwritable folders, clocks, odd names."""

from __future__ import annotations

import faulthandler
import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from campaigns import small, verbs

from mmsurgery.artifacts import hdf5
from mmsurgery.artifacts.checkpoint import CheckpointFiles, WeightReader
from mmsurgery.artifacts.files import write_bytes
from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.evaluate import scorer
from mmsurgery.provenance import provenance
from mmsurgery.saliency.measure import _Measurement
from mmsurgery.unlearn import loop
from mmsurgery.workspace import SILENT
from mmsurgery_cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> small.Place:
    return verbs.chain(tmp_path_factory.mktemp("machine") / "ws", "llava")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_stops_at_once(number: signal.Signals, place: small.Place, tmp_path: Path) -> None:
    """Case 56: where the first one waits for the end of the step."""
    copied = place.copy(tmp_path / "ws")
    before = verbs.state(copied.root)

    def twice() -> int:
        signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may have it ignored

        def step(*_: Any) -> float:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            os._exit(1)

        with (
            mock.patch.object(loop, "_clip", step),
            mock.patch.object(main, "run", functools.partial(verbs.work, copied, "apply")),
        ):
            main.main()

    assert verbs.ended(verbs.fork(twice)) == -number
    assert verbs.mixed(verbs.state(copied.root), before, before) == []
    assert verbs.command(copied, "apply").code == 0
    assert verbs.leftovers(copied.root) == []


CHANGED = {
    "apply": (loop, "_clip", "models/vanilla/model.safetensors"),
    "train": (loop, "_clip", "models/base/model.safetensors"),
    "saliency": (_Measurement, "_step", "models/vanilla/model.safetensors"),
    "eval": (scorer, "score", "models/ga/model.safetensors"),
}
"""Command -> what it does again and again, and a file that is replaced when it first does it."""


@pytest.mark.parametrize("verb", CHANGED)
def test_a_model_that_changes_meanwhile(verb: str, place: small.Place, tmp_path: Path) -> None:
    """Case 59: nothing is made of two models."""
    copied = place.copy(tmp_path / "ws")
    where, name, changed = CHANGED[verb]
    file, real = copied.root / changed, getattr(where, name)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    before = verbs.state(copied.root)

    def changing(*arguments: Any, **options: Any) -> Any:
        write_bytes(file, bytes(data))
        return real(*arguments, **options)

    with mock.patch.object(where, name, changing):
        ran = copied.run(*verbs.COMMANDS[verb]) if verb != "train" else verbs.command(copied, verb)
    assert ran.code == 3
    assert re.search(r"error\[3\]: .*(changed while|not those its run wrote)", ran.err)
    after = verbs.state(copied.root)
    assert {each for each in after if before.get(each) != after[each]} <= {changed}


CUT = {
    **CHANGED,
    "diff": (WeightReader, "read", "models/ga/model.safetensors"),
    "patch": (CheckpointFiles, "array", "models/ga/model.safetensors"),
    "mask": (hdf5, "read_at", "saliency/forget_vqa/saliency.h5"),
}


@pytest.mark.parametrize("verb", CUT)
def test_nothing_is_made_of_half_a_file(verb: str, place: small.Place, tmp_path: Path) -> None:
    """Case 7: where a file is mapped into memory, the system ends a process that uses what was cut off."""
    copied, said = place.copy(tmp_path / "ws"), tmp_path / "said"
    where, name, cut = CUT[verb]
    real, before = getattr(where, name), verbs.state(copied.root)

    def cutting(*arguments: Any, **options: Any) -> Any:
        os.truncate(copied.root / cut, 4096)
        return real(*arguments, **options)

    def run() -> int:
        faulthandler.disable()
        with mock.patch.object(where, name, cutting):
            ran = verbs.command(copied, verb)
        said.write_text(ran.err)
        return ran.code

    code = verbs.ended(verbs.fork(run))
    assert code in (3, -signal.SIGBUS)
    if code == 3:
        assert re.search(r"error\[3\]: .*(cut|cannot be read|changed while|not those its run wrote)", said.read_text())
    after = verbs.state(copied.root)
    assert {each for each in after.keys() | before.keys() if before.get(each) != after.get(each)} == {cut}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """`read_only(folder)`: a mount that even root cannot write."""
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for arguments in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
            done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no folder can be mounted here: {done.stderr.strip()}")
            if folder not in mounted:
                mounted.append(folder)

    if shutil.which("mount") is None:
        pytest.skip("no mount here")
    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


ROOMS = {"saliency": "saliency", "apply": "models", "train": "models", "eval": "evals", "patch": "patches"}


@pytest.mark.parametrize("verb", ROOMS)
def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(
    verb: str, place: small.Place, read_only: Callable[[Path], None], tmp_path: Path
) -> None:
    """Case 60."""
    copied = place.copy(tmp_path / "ws")
    read_only(copied.root / ROOMS[verb])
    worked = AssertionError("worked before it looked")
    with (
        mock.patch.object(loop, "train", side_effect=worked),
        mock.patch.object(_Measurement, "run", side_effect=worked),
        mock.patch.object(scorer, "score", side_effect=worked),
        mock.patch.object(Patch, "write", side_effect=worked),
    ):
        ran = verbs.command(copied, verb)
    assert ran.code == 6
    assert ran.err.splitlines()[-1].startswith(f"error[6]: cannot write {copied.root / ROOMS[verb]}")
    assert ran.err.splitlines()[-1].endswith("Read-only file system - next: choose a folder that can be written")


def test_the_order_of_snapshots_is_that_of_steps(tmp_path: Path) -> None:
    """Case 62: a clock that jumped back does not make an older one the newest."""
    snapshots = Snapshots(tmp_path / "s", provenance("test", {}, {}))
    for step in (1, 2):
        snapshots.save(step, {"step": step}, [])
    os.utime(tmp_path / "s" / "step-00000002.safetensors", (0, 0))
    snapshots.save(3, {"step": 3}, [])
    os.utime(tmp_path / "s" / "step-00000003.safetensors", (0, 0))
    found = snapshots.load(SILENT)
    assert found is not None
    assert found[0] == {"step": 3}
    assert len(list((tmp_path / "s").iterdir())) == 2


@pytest.mark.parametrize("name", ["数据 é 🙂", "e\u0301", "a\nb %s", b"\xff\xfe"])
def test_a_workspace_of_any_name(name: str | bytes, place: small.Place, tmp_path: Path) -> None:
    """Case 63: it is worked in, and what is said of it can be printed."""
    root = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), os.fsencode(name))))
    copied = place.copy(root)
    undisturbed = place.copy(tmp_path / "plain")
    for each in (copied, undisturbed):
        assert verbs.command(each, "patch").code == 0
        assert verbs.command(each, "diff").code == 0
    assert verbs.state(copied.root) == verbs.state(undisturbed.root)
    (root / "masks" / "default.safetensors").write_bytes(b"x")
    ran = copied.run("inspect", "default")
    assert (ran.code, len(ran.err.splitlines())) == (3, 1)
    assert ran.err.encode("utf-8")
