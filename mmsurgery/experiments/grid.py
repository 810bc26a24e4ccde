"""Working through the levels of a grid: those of different vanilla models at the same time, each in a process of its
own with the recipe's threads, on a GPU of its own where there are several."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

    @property
    def units(self) -> int:
        """What `advance` adds up to."""
        return sum(1 + len(self.table.rows) * len(level.unlearning) for level in self.levels)


def works(levels: Sequence[Level], tables: Mapping[str, Experiment]) -> list[Work]:
    """The work on levels, one piece per vanilla model.

    Args:
        tables: backbone -> what is asked of its levels.
    """
    found: dict[tuple[str, int], list[Level]] = {}
    for level in levels:
        found.setdefault(level.vanilla, []).append(level)
    return [Work(inside, tables[inside[0].backbone]) for inside in found.values()]


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
    for place, made in _results(list(enumerate(pieces)), min(jobs, len(pieces)), progress, advance, log):
        found[place] = made
    return [made for place in sorted(found) for made in found[place]]


Task = tuple[int, Work]


def _results(
    tasks: list[Task],
    jobs: int,
    progress: Progress,
    advance: Callable[[int], None],
    log: Callable[[Event], None],
) -> Iterator[tuple[int, list[Made]]]:
    """Pieces as they are finished."""
    if jobs <= 1:
        for place, work in tasks:
            yield place, _worked(work, lambda label: Told(label, progress.note, advance, log, progress))
        return
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    devices: Any = context.Queue()
    gpus = _gpus()
    for place in range(jobs if gpus else 0):
        devices.put(gpus[place % len(gpus)])
    tell: dict[str, Callable[[Any], None]] = {"advance": advance, "note": progress.note, "log": log}
    with context.Pool(jobs, _begin, (messages, devices if gpus else None)) as pool:  # its end terminates the processes
        processes = multiprocessing.active_children()
        waiting = [pool.apply_async(_in_pool, (task,)) for task in tasks]
        while waiting:
            if not all(process.is_alive() for process in processes):  # its level would be waited for without end
                raise MachineFault("a process of the grid was killed", "run it again with fewer --jobs")
            with contextlib.suppress(queue.Empty):
                kind, value = messages.get(timeout=0.2)
                tell[kind](value)
                continue
            for result in [result for result in waiting if result.ready()]:
                waiting.remove(result)
                yield result.get()


_messages: Any = None


def _begin(messages: Any, devices: Any) -> None:
    """In a worker process: where its messages go, and its GPU; the first process alone answers interrupts."""
    global _messages
    _messages = messages
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_pool(task: Task) -> tuple[int, list[Made]]:
    place, work = task

    def put(kind: str) -> Callable[[Any], None]:
        return lambda value: _messages.put((kind, value))

    return place, _worked(work, lambda label: Told(label, put("note"), put("advance"), put("log")))


def _worked(work: Work, told: Callable[[str], Told]) -> list[Made]:
    return [made for level in work.levels for made in run_level(level, work.table, told(level.label))]
