"""`experiment`: run a grid, level by level, and write what it shows.

Levels are independent: several are worked on at a time, one process and the recipe's threads each. Every
model, mask and score is an artifact of its level's workspace, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.artifacts.files import read_json, write_bytes
from mmsurgery.backbones import discovery
from mmsurgery.errors import MachineFault, MissingArtifact, UnusableData, UsageError
from mmsurgery.experiments import rows
from mmsurgery.experiments.levels import Level, levels_of, prepare, run_row, scored, scored_items
from mmsurgery.experiments.results import assemble, target_of
from mmsurgery.experiments.scores import at_matched_forgetting, unpack
from mmsurgery.experiments.tables import markdown
from mmsurgery.provenance import canonical_json, check_seal
from mmsurgery.workspace import SILENT, Progress

RESULTS, TABLE = "results.json", "table.md"
_LONG = 400
"""Stages of this many units are announced, the rest are not."""


@dataclass(frozen=True)
class ExperimentResult:
    """A finished experiment."""

    name: str
    path: Path
    """Its results file; the Markdown tables lie beside it."""
    up_to_date: bool
    results: dict[str, Any] = field(repr=False)
    seconds: float
    """Wall time of this call."""


def experiment(
    workspace: Workspace,
    name: str,
    *,
    seeds: int = 3,
    backbones: tuple[str, ...] = (),
    jobs: int | None = None,
    progress: Progress = SILENT,
) -> ExperimentResult:
    """Run an experiment of `rows.EXPERIMENTS` and write `experiments/NAME/results.json` and `table.md`.

    Args:
        seeds: levels per backbone, see `levels.levels_of`.
        backbones: families of the micro model, for portraits; the workspace's own where empty.
        jobs: levels worked on at a time; by default as many as there are processors for their threads.

    Raises:
        UsageError: for an unknown experiment or backbone, or a number that makes no sense.
        MissingArtifact: if the vanilla model is given and not there.
        MachineFault: if a level's workspace is in use or cannot be written.
    """
    begin = time.monotonic()
    table = rows.find(name)
    if seeds < 1 or (jobs is not None and jobs < 1):
        raise UsageError("--seeds and --jobs are at least 1", "change the number")
    if backbones and workspace.settings.benchmark.name != "portraits":
        raise UsageError("only portraits makes models of a chosen backbone", "leave --backbones out")
    chosen = tuple(
        discovery.backbone(family).model_type for family in backbones or (workspace.settings.models.backbone,)
    )
    levels = levels_of(workspace, seeds=seeds, backbones=chosen)
    workers = min(len(levels), jobs or max(1, (os.cpu_count() or 1) // workspace.threads))
    progress.note(f"{table.title}: {len(levels)} levels of {len(table.rows)} rows, {workers} at a time")
    found: dict[int, dict[str, Any]] = {}
    with progress.stage(name, len(levels) * (len(table.rows) + 1)) as advance:
        for place, made in _work(
            [(place, level, name) for place, level in enumerate(levels)], workers, progress, advance
        ):
            found[place] = made
    results = assemble(table, [found[place] for place in sorted(found)])
    path = workspace.path("experiments", name, RESULTS)
    files = {path.with_name(TABLE): markdown(results).encode(), path: canonical_json(results) + b"\n"}
    up_to_date = all(file.is_file() and file.read_bytes() == content for file, content in files.items())
    if not up_to_date:
        with workspace.lock():
            for file, content in files.items():
                write_bytes(file, content)
            workspace.journal("experiment", name=name, seeds=seeds, backbones=list(chosen))
    return ExperimentResult(name, path, up_to_date, results, time.monotonic() - begin)


def read_results(path: Path) -> dict[str, Any]:
    """The results of an experiment.

    Raises:
        MissingArtifact: if it was not run.
        InputRefused: if the file is damaged.
    """
    if not path.exists():
        raise MissingArtifact(f"{path} does not exist", f"mmsurgery experiment {path.parent.name}")
    return check_seal(read_json(path), str(path), kind="experiment")


Task = tuple[int, Level, str]


def _work(
    tasks: list[Task], workers: int, progress: Progress, advance: Callable[[int], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Levels as they are finished."""
    if workers == 1:
        for place, level, name in tasks:
            yield place, run_level(level, name, _Told(level.label, progress.note, advance))
        return
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    with context.Pool(workers, _begin, (messages,)) as pool:  # its end terminates the processes
        processes = multiprocessing.active_children()
        waiting = [pool.apply_async(_in_pool, (task,)) for task in tasks]
        while waiting:
            if not all(process.is_alive() for process in processes):  # its level would be waited for without end
                raise MachineFault("a process of the grid was killed", "run it again with fewer --jobs")
            with contextlib.suppress(queue.Empty):
                kind, value = messages.get(timeout=0.2)
                advance(value) if kind == "advance" else progress.note(value)
                continue
            for result in [result for result in waiting if result.ready()]:
                waiting.remove(result)
                yield result.get()


_messages: Any = None


def _begin(messages: Any) -> None:
    """In a worker process: where its messages go; the first process alone answers a key that interrupts."""
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_pool(task: Task) -> tuple[int, dict[str, Any]]:
    place, level, name = task
    told = _Told(
        level.label,
        lambda text: _messages.put(("note", text)),
        lambda amount: _messages.put(("advance", amount)),
    )
    return place, run_level(level, name, told)


class _Told:
    """Progress of a level as the grid tells it: long stages and finished rows, no more."""

    def __init__(self, label: str, note: Callable[[str], None], advance: Callable[[int], None]) -> None:
        self._label, self._note, self.advance = label, note, advance

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        if total >= _LONG:
            self.tell(what)
        yield lambda amount: None

    def note(self, text: str) -> None:
        return

    def tell(self, text: str) -> None:
        self._note(f"{self._label}: {text}")


def run_level(level: Level, name: str, told: _Told) -> dict[str, Any]:
    """All rows of an experiment on one level, as plain JSON for `results.assemble`.

    A row that cannot be trained (it diverges, its mask selects nothing) is kept as `failed`, with the reason;
    every other error ends the run.
    """
    table = rows.find(name)
    workspace = prepare(level, reference=table.needs_reference, progress=told)
    models = [model for model in ("vanilla", "gold") if (workspace.model_dir(model) / "config.json").exists()]
    if not models:
        raise MissingArtifact(f"no vanilla model in {workspace.root}", "mmsurgery train vanilla")
    items = scored_items(workspace)
    start = scored(workspace, models, progress=told)
    told.advance(1)
    target = target_of(start, items)
    cells = {}
    for row in table.rows:
        begin = time.monotonic()
        cells[row.key] = cell = _cell(workspace, row, items, target, told)
        told.tell(f"{row.label} {cell.get('failed', 'done')} ({time.monotonic() - begin:.0f} s)")
        told.advance(1)
    return {
        "level": {
            "backbone": level.backbone,
            "seed": level.seed,
            "draw": level.settings.benchmark.draw,
            "folder": str(level.folder.relative_to(level.root)),
            "target": target,
        },
        "items": {
            column: {
                "people": [item.person for item in asked],
                "chance": sum(1 / len(item.options or "1") for item in asked) / len(asked),
            }
            for column, asked in items.items()
        },
        "start": start,
        "cells": cells,
    }


def _cell(workspace: Workspace, row: rows.Row, items: dict[str, Any], target: float, told: _Told) -> dict[str, Any]:
    """One row on one level: the fixed budget, and a longer run where that does not reach matched forgetting."""
    try:
        model, record, density = run_row(workspace, row, progress=told)
    except UnusableData as error:
        return {"failed": str(error)}
    evaluations = record["evaluations"]
    sizes = {column: len(asked) for column, asked in items.items()}
    if at_matched_forgetting(unpack(evaluations, sizes), target) is None:
        try:
            evaluations = run_row(workspace, row, budgets=rows.FURTHER, progress=told)[1]["evaluations"]
        except UnusableData as error:  # the fixed budget stands, matched forgetting was not reached
            told.tell(f"{row.label}, longer run: {error}")
    return {
        "model": model,
        "density": density,
        "run_key": record["provenance"]["key"],
        "steps": record["steps"]["done"],
        "samples": record["samples"],
        "evaluations": evaluations,
        **scored(workspace, [model], progress=told)[model],
    }
