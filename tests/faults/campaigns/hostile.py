"""Promise 2: reading runs nothing and opens nothing else; hostile files through the command line.

Each command runs in a process forked from this one. There Python tells of every file opened, process started, address
connected to; and the kernel tells of whatever is touched in the folder of baits, for what the C
libraries open Python does not see. A marker is a folder that code in a file would make.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from campaigns import verbs
from campaigns.hostile_artifacts import ARTIFACTS
from campaigns.hostile_inputs import INPUTS
from campaigns.row import Row
from campaigns.scene import Plant, Scene, scenes
from campaigns.small import kept_if_broken

FILES = ARTIFACTS | INPUTS
ALWAYS = (
    "weights of a terabyte in a hole",
    "mask of a terabyte in a hole",
    "tokenizer that is a link",
    "configuration that is a link",
    "header of 700,000 tensors",
)
"""What is among the files of every run, however few."""
HARMLESS = {"file that the official code loads", "vision tower with code"}
"""What is not looked at, so that the command goes on."""
SECONDS = 20
"""Processor time that no refusal takes, and a hang does."""
MEMORY = 1 << 30
"""Bytes that no refusal takes."""
_STARTED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "urllib.Request")


class Watched:
    """A folder, of which the kernel tells whether anything in it was opened or read since."""

    def __init__(self, folder: Path) -> None:
        system = ctypes.CDLL(None, use_errno=True)
        self._handle = system.inotify_init1(os.O_NONBLOCK)
        opened, read = 0x20, 0x1
        if self._handle < 0 or system.inotify_add_watch(self._handle, os.fsencode(folder), opened | read) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def touched(self) -> bool:
        try:
            return bool(os.read(self._handle, 4096))
        except BlockingIOError:
            return False


def _meets(scene: Scene, command: tuple[str, ...], found: Path) -> int:
    """Run the command that meets what is planted, and write what was seen to a file; in a process of its own."""
    os.chdir(scene.root)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(10 * SECONDS)
    homes = [*map(os.path.realpath, (scene.root, sys.prefix, sys.base_prefix, os.environ["XDG_CACHE_HOME"]))]
    homes += [str(Path(__file__).resolve().parents[3]), "/proc", "/sys", "/dev/null", "/dev/urandom"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = found.open("w")  # before anything is seen, as is the log, to which processes forked from this one write
    log = os.open(_log(scene), os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not any(path == home or path.startswith(home + os.sep) for home in homes):
                os.write(log, f"opened {path}\n".encode())
        elif event.startswith(_STARTED):
            os.write(log, f"{event} {arguments}"[:200].encode() + b"\n")

    watched = Watched(scene.baits)
    sys.addaudithook(hook)
    ran = scene.place.run(*command)
    if watched.touched():
        os.write(log, b"touched what lies outside\n")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    result.write(json.dumps({"code": ran.code, "err": ran.err, "grown": grown}))
    result.close()
    return 0


def _log(scene: Scene) -> Path:
    """Where is written what was seen."""
    return scene.root.with_name("seen.txt")


def fault(plant: Plant, scene: Scene, harmless: bool = False) -> str | None:
    """What is wrong with how a hostile file is met, None if nothing is.

    Args:
        harmless: whether the command has no need to look at it, and goes on.
    """
    found = scene.root.with_name("found.json")
    with mock.patch.dict(os.environ):
        command = plant(scene)
        status = verbs.ended(verbs.fork(lambda: _meets(scene, command, found), found.with_name("said.txt")))
    if status != 0:
        return f"the process ended with {status}: {found.with_name('said.txt').read_text()[-500:]}"
    met = json.loads(found.read_text())
    if seen := _log(scene).read_text().splitlines():
        return "; ".join(seen[:5])
    if scene.marker.exists() or (scene.root / "marker").exists():
        return "code was run"
    if met["grown"] > MEMORY:
        return f"took {met['grown']:,} bytes of memory"
    if harmless:
        return None if met["code"] == 0 else f"exit code {met['code']}: {met['err'][-300:]}"
    lines = met["err"].splitlines()
    if met["code"] != 3 or len(lines) != 1 or not lines[0].startswith("error[3]: ") or " - next: " not in lines[0]:
        return f"exit code {met['code']}: {met['err'][:500]}"
    return None


def run(seed: int, count: int, report: Callable[[str], None]) -> list[Row]:
    """Every hostile file in an order of the seed's; or `count` of them, those of `ALWAYS` first."""
    begin, faults = time.monotonic(), list[str]()
    report(f"hostile files: seed {seed}")
    others = random.Random(seed).sample(sorted(FILES.keys() - set(ALWAYS)), len(FILES) - len(ALWAYS))
    chosen = [*ALWAYS, *others][:count]
    with kept_if_broken("hostile") as (folder, keep):
        make = scenes(folder)
        for name in chosen:
            scene = make(name)
            if (wrong := fault(FILES[name][1], scene, name in HARMLESS)) is not None:
                faults.append(f"{name} (case {FILES[name][0]}): {wrong}")
                report(f"  {folder / name}: {faults[-1]}")
                keep(name)
            else:
                shutil.rmtree(folder / name)
    refused = len(chosen) - len(faults)
    figure = f"{refused} of {len(chosen)} did nothing: 0 markers, 0 files opened outside"
    what = "hostile files, through the command line"
    return [Row(2, what, figure, not faults, time.monotonic() - begin)]
