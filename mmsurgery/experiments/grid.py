"""Working through the levels of a grid: those of different vanilla models at the same time, each in a process of its
own with the recipe's threads, on a GPU of its own where there are several."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from mmsurgery.errors import MachineFault
from mmsurgery.experiments.cells import Event, Told, run_level
from mmsurgery.experiments.levels import Level
from mmsurgery.experiments.rows import Experiment
from mmsurgery.workspace import Progress

Made = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Levels of one vanilla model, which follow each other, and what is asked of them."""

    levels: Sequence[Level]
    table: Experiment
    sides: Sequence[frozenset[str]] = ()
    """People who are judged apart from each other; everybody together where there are none."""

    @property
    def units(self) -> int:
        """What `advance` adds up to: rows, as often as they are run."""
        return sum(len(rows) for rows in self.steps.values())

    @property
    def steps(self) -> dict[str, list[str]]:
        """Label of each level -> keys of its rows, as often as they are run."""
        return {level.label: [row.key for row in self.table.rows] * len(level.unlearning) for level in self.levels}


def works(
    levels: Sequence[Level], tables: Mapping[str, Experiment], sides: Sequence[frozenset[str]] = ()
) -> list[Work]:
    """The work on levels, one piece per vanilla model.

    Args:
        tables: backbone -> what is asked of its levels.
    """
    found: dict[tuple[str, int], list[Level]] = {}
    for level in levels:
        found.setdefault(level.vanilla, []).append(level)
    return [Work(inside, tables[inside[0].backbone], sides) for inside in found.values()]


def jobs_by_default(threads: int) -> int:
    """As many processes as there are GPUs, without one as many as the processors have room for."""
    return len(_gpus()) or max(1, (os.cpu_count() or 1) // threads)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def run(
    pieces: Sequence[Work],
    jobs: int,
    *,
    progress: Progress,
    advance: Callable[[int], None],
    log: Callable[[Event], None],
) -> list[Made]:
    """What `cells.run_level` gives for every level, in the order of the pieces.

    Raises:
        MachineFault: if a process is killed.
    """
    found: dict[int, list[Made]] = {}
    jobs = min(jobs, len(pieces))
    working = _in_order(pieces, progress, advance, log) if jobs <= 1 else None
    for place, made in working or _side_by_side(pieces, jobs, progress, advance, log):
        found[place] = made
    return [made for place in sorted(found) for made in found[place]]


def _in_order(
    pieces: Sequence[Work], progress: Progress, advance: Callable[[int], None], log: Callable[[Event], None]
) -> Iterator[tuple[int, list[Made]]]:
    for place, work in enumerate(pieces):
        yield place, _worked(work, lambda label: Told(label, progress.note, advance, log, progress))


@dataclass
class _Process:
    """A process that works on one piece."""

    place: int
    slot: int
    process: Any


def _side_by_side(
    pieces: Sequence[Work],
    jobs: int,
    progress: Progress,
    advance: Callable[[int], None],
    log: Callable[[Event], None],
) -> Iterator[tuple[int, list[Made]]]:
    """Pieces as they are finished; whatever ends this ends the processes: what they wrote is whole."""
    context, gpus = multiprocessing.get_context("spawn"), _gpus()
    tell: dict[str, Callable[[Any], None]] = {"advance": advance, "note": progress.note, "log": log}
    waiting, free = list(enumerate(pieces)), list(range(jobs))
    running: dict[Any, _Process] = {}
    try:
        while waiting or running:
            while waiting and free:
                (place, work), slot = waiting.pop(0), free.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                gpu = gpus[slot % len(gpus)] if gpus else None
                process = context.Process(target=_in_process, args=(theirs, work, gpu), daemon=True)
                process.start()
                theirs.close()
                running[ours] = _Process(place, slot, process)
            ready: list[Any] = connection.wait(list(running))
            for pipe in ready:
                try:
                    kind, value = pipe.recv()
                except EOFError:  # it died without a word: its piece would be waited for without end
                    raise MachineFault("a process of the grid was killed", "run it again with fewer --jobs") from None
                if kind == "failed":
                    raise value
                if kind == "made":
                    done = running.pop(pipe)
                    done.process.join()
                    free.append(done.slot)
                    yield done.place, value
                else:
                    tell[kind](value)
    finally:
        for each in running.values():
            each.process.kill()
            each.process.join()


def _in_process(pipe: Any, work: Work, gpu: str | None) -> None:
    """A piece in a process of its own; the first process alone answers signals that ask to stop, and ends this one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    def put(kind: str) -> Callable[[Any], None]:
        return lambda value: pipe.send((kind, value))

    try:
        pipe.send(("made", _worked(work, lambda label: Told(label, put("note"), put("advance"), put("log")))))
    except BrokenPipeError:  # nobody waits for it any more
        os._exit(1)
    except Exception as error:
        pipe.send(("failed", error))


def _worked(work: Work, told: Callable[[str], Told]) -> list[Made]:
    return [made for level in work.levels for made in run_level(level, work.table, told(level.label), work.sides)]
