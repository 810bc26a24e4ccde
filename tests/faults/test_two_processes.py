"""Cases 57, 58 and promise 10: two processes on one workspace; a reader while another one writes."""

from __future__ import annotations

import random
from pathlib import Path

from campaigns import races, verbs
from failing_writes import FailingDisk

from mmsurgery.artifacts.files import atomic_files, atomic_folder


def test_promise_10_in_short() -> None:
    """One race and one lock that is held: who waits is told by whom, and comes next when the holder is killed."""
    rows = races.run(random.randrange(10**6), 2, print, ("patch", "diff"))
    assert [row for row in rows if not row.kept] == []


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    """Cases 52, 58: whichever operation on a file the writer is at, and is stopped at for good, each artifact is whole;
    and the next writer removes what is left."""

    def write(text: str) -> int:
        with atomic_folder(tmp_path / "map", replace=True) as new:
            for name in ("a", "b"):
                (new / name).write_text(text)
        with atomic_files(tmp_path / "mask") as (file,):
            file.write_text(text)
        return 0

    def stopped(nth: int) -> int:
        with FailingDisk(tmp_path, nth, "kill"):
            return write("new")

    for nth in range(1, 100):
        write("old")
        died = verbs.ended(verbs.fork(lambda nth=nth: stopped(nth))) < 0  # type: ignore[misc]
        found = [{path.read_text() for path in paths} for paths in ((tmp_path / "map").iterdir(), [tmp_path / "mask"])]
        assert found in ([{"old"}, {"old"}], [{"new"}, {"old"}], [{"new"}, {"new"}]), nth
        assert sorted(path.name for path in (tmp_path / "map").iterdir()) == ["a", "b"]
        if not died:
            break
    assert nth > 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map", "mask"]
