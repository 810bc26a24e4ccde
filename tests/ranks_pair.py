"""Starts a script as several ranks: as a launcher does, or forked from this process, which has everything imported."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

PATIENCE = 240
"""Seconds after which ranks that still run hang."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def launched(code: str, *arguments: str, count: int = 2) -> list[Ended]:
    """How each rank of `python -c code arguments` ended, in their order."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **where},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for where in _places(count)
    ]
    try:
        texts = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [Ended(process.returncode, *text) for process, text in zip(started, texts, strict=True)]


def forked(code: str, *arguments: str, count: int = 2) -> list[Ended]:
    """`launched` without the seconds that every new process takes to import torch and transformers."""
    import mmsurgery.backbones.loading  # noqa: F401
    import mmsurgery_cli.main  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="mmsurgery-ranks-") as folder:
        said = [(Path(folder, f"{rank}.out"), Path(folder, f"{rank}.err")) for rank in range(count)]
        places = zip(_places(count), said, strict=True)
        running = {_fork(code, arguments, *each): rank for rank, each in enumerate(places)}
        codes, patience = dict[int, int](), time.monotonic() + PATIENCE
        try:
            while running and time.monotonic() < patience:
                for process in list(running):
                    ended, status = os.waitpid(process, os.WNOHANG)
                    if ended:
                        codes[running.pop(process)] = os.waitstatus_to_exitcode(status)
                time.sleep(0.02)
            assert not running, f"after {PATIENCE} seconds ranks {sorted(running.values())} still run"
        finally:
            for process in running:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        return [Ended(codes[rank], *(path.read_text() for path in each)) for rank, each in enumerate(said)]


def _places(count: int) -> list[dict[str, str]]:
    """What a launcher tells each rank by its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _fork(code: str, arguments: tuple[str, ...], place: dict[str, str], said: tuple[Path, Path]) -> int:
    """A rank's process; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which do nothing meanwhile
        process = os.fork()
    if process:
        return process
    ended = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.environ.update(place)
        for number, path in enumerate(said, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        sys.argv = ["-c", *arguments]
        try:
            exec(compile(code, "rank", "exec"), {"__name__": "__main__"})
            ended = 0
        except SystemExit as stop:
            ended = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(ended)
