"""Starts a script as several ranks, as a launcher does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import NamedTuple

PATIENCE = 240
"""Seconds after which ranks that still run hang."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def launched(code: str, *arguments: str, count: int = 2) -> list[Ended]:
    """How each rank of `python -c code arguments` ended, in their order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        named = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env={**os.environ, **named, **where},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        texts = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [Ended(process.returncode, *text) for process, text in zip(started, texts, strict=True)]
