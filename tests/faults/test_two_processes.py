"""Cases 57, 58 and promise 10: two processes on one workspace; a reader while another one writes."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from campaigns import races, verbs

from mmsurgery.artifacts.files import atomic_folder, write_bytes


def test_promise_10_in_short() -> None:
    """One race and one lock that is held: who waits is told by whom, and comes next when the holder is killed."""
    rows = races.run(random.randrange(10**6), 2, print, ("patch", "diff"))
    assert [row for row in rows if not row.kept] == []


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    """Case 58: a folder and a file that another process replaces without end are whole whenever they are looked at."""
    folder, file = tmp_path / "map", tmp_path / "mask"

    def write(text: bytes) -> None:
        with atomic_folder(folder, replace=True) as new:
            for name in ("a", "b"):
                (new / name).write_bytes(text * 2000)
        write_bytes(file, text * 2000)

    def rewrite() -> int:
        while True:
            write(b"0")
            write(b"1")

    write(b"1")
    process = verbs.fork(rewrite)
    try:
        seen = set()
        for _ in range(300):
            seen.add(file.read_bytes())
            handle = os.open(folder, os.O_RDONLY)  # the folder that stands there now, whatever comes in its place
            try:
                names = os.listdir(handle)
            finally:
                os.close(handle)
            assert sorted(names) in (["a", "b"], [])  # none where it was removed meanwhile, after it was replaced
            assert folder.exists()
        assert seen <= {b"0" * 2000, b"1" * 2000}
    finally:
        os.kill(process, signal.SIGKILL)
        verbs.ended(process)
