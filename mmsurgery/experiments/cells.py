"""The cells of a grid: every row of an experiment run on one level, as plain JSON for `results.assemble`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.api import Workspace
from mmsurgery.data.samples import Item
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UnusableData
from mmsurgery.evaluate import evaluate
from mmsurgery.evaluate.protocols import LIKELIHOOD, OPEN
from mmsurgery.evaluate.records import read_eval, read_items
from mmsurgery.experiments.anchor_pictures import anchor_pictures
from mmsurgery.experiments.audits import audited
from mmsurgery.experiments.deviations import deviation
from mmsurgery.experiments.level_runs import FORGET, Said, target_of
from mmsurgery.experiments.levels import Level, prepare
from mmsurgery.experiments.pace import PREPARED
from mmsurgery.experiments.rows import FURTHER, POINTS, Experiment, Row
from mmsurgery.experiments.scores import at_matched_forgetting, unpack
from mmsurgery.masks.build import build_mask
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Progress

_LONG = 400
"""Stages of this many units are announced, the rest are not."""
LEFT_OUT = ("test_vqa",)
"""Columns that the paper's tables lack."""
Event = Mapping[str, Any]
"""What is logged of a cell: `event`, and its values."""


class Told:
    """Progress of a level as the grid tells it: long stages and finished cells, no more."""

    def __init__(
        self,
        label: str,
        note: Callable[[str], None],
        advance: Callable[[int], None],
        log: Callable[[Event], None] = lambda event: None,
        inner: Progress | None = None,
    ) -> None:
        self._label, self._note, self.advance, self._log, self._inner = label, note, advance, log, inner
        self.worked = False
        """Whether something was made since it was last false: what is found has no stages."""

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        self.worked = True
        if total >= _LONG:
            self.tell(what)
        with (
            contextlib.nullcontext(lambda amount: None)
            if self._inner is None
            else self._inner.stage(f"{self._label}: {what}", total) as advance
        ):
            yield advance

    def note(self, text: str) -> None:
        return

    def tell(self, text: str) -> None:
        self._note(f"{self._label}: {text}")

    def log(self, event: str, **values: Any) -> None:
        self._log({"event": event, "level": self._label, **values})


def run_level(
    level: Level, table: Experiment, told: Told, sides: Sequence[frozenset[str]] = ()
) -> list[dict[str, Any]]:
    """All rows of an experiment on one level, one entry per unlearning seed.

    A row that cannot be trained (it diverges, its mask selects nothing, its reference model is not there) is kept
    as `failed`, with the reason; every other error ends the run; for what is damaged or does not fit the next
    step is about the level.

    Args:
        sides: people who are judged apart from each other: a run is long enough when each side is at matched
            forgetting. Everybody together where there are none.
    """
    try:
        return _run_level(level, table, told, sides)
    except (InputRefused, Mismatch) as error:  # a lock that is held, or a full disk, is no reason to remove anything
        error.next_step = _about(level, error.next_step)
        raise


def _about(level: Level, step: str | None) -> str:
    """A next step that was said to somebody who stands in the level's workspace."""
    commanded = step is not None and step.startswith("mmsurgery ")
    mend = f"{str(step).replace('mmsurgery ', f'mmsurgery -w {level.folder} ', 1)}; or " if commanded else ""
    return f"{mend}remove {level.folder}, then run the experiment again: it makes the level anew"


def _run_level(level: Level, table: Experiment, told: Told, sides: Sequence[frozenset[str]]) -> list[dict[str, Any]]:
    begin, told.worked = time.monotonic(), False
    told.log("level")
    workspace = prepare(level, reference=table.needs_reference, progress=told, tell=told.tell)
    models = [model for model in ("vanilla", "gold") if (workspace.model_dir(model) / "config.json").exists()]
    if "vanilla" not in models:
        raise MissingArtifact(f"no vanilla model in {workspace.root}", "mmsurgery train vanilla")
    items = scored_items(workspace)
    start = scored(workspace, table, models, told)
    told.log(PREPARED, seconds=round(time.monotonic() - begin, 1), found=not told.worked)
    asked = {column: _asked(each) for column, each in items.items()}
    long_enough = _LongEnough(asked, start, sides)
    found = []
    for seed in level.unlearning:
        cells = {}
        for row in table.rows:
            cells[row.key] = _cell(workspace, table, row, seed, long_enough, told)
            told.advance(1)
        found.append(
            {
                "level": {
                    "backbone": level.backbone,
                    "seed": level.seed,
                    "draw": level.settings.benchmark.draw,
                    "forget": level.settings.benchmark.forget,
                    "folder": str(level.folder.relative_to(level.root)),
                },
                "unlearning": seed,
                "items": asked,
                "start": start,
                "cells": cells,
                "texts": _texts(workspace, table, items, models, cells),
            }
        )
    return found


def scored_items(workspace: Workspace) -> dict[str, list[Item]]:
    """The items of every column of the paper's tables that has some, in the order in which runs record them."""
    wanted = [column for column in workspace.benchmark.columns(workspace.source) if column not in LEFT_OUT]
    found = {column: workspace.items(column) for column in wanted}
    return {column: items for column, items in found.items() if items}


class _LongEnough:
    """Whether a run got to matched forgetting, on every side of the people."""

    def __init__(self, asked: Mapping[str, Any], start: Mapping[str, Any], sides: Sequence[frozenset[str]]) -> None:
        people = asked[FORGET]["people"]
        self._size = {FORGET: len(people)}
        self._sides = []
        for side in sides or [frozenset(people)]:
            kept = np.flatnonzero([person in side for person in people])
            self._sides.append((kept, target_of(start, asked, kept)))

    def __call__(self, evaluations: Sequence[Mapping[str, Any]]) -> bool:
        return all(
            at_matched_forgetting(unpack(evaluations, self._size, {FORGET: kept}), target) is not None
            for kept, target in self._sides
        )


def _asked(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "people": [item.person for item in items],
        "chance": sum(1 / len(item.options or "1") for item in items) / len(items),
    }


def scored(workspace: Workspace, table: Experiment, models: Sequence[str], told: Told) -> dict[str, dict[str, Any]]:
    """Scores of models, made as far as they are missing: name -> `{model_sha256, correct, remarks, answers}`, where
    `correct` holds one truth value per item by column, and `answers` what its open answer is (outcome, paraphrased,
    repeated)."""
    for protocol in (LIKELIHOOD, OPEN) if table.answers else (LIKELIHOOD,):
        evaluate(workspace, list(models), protocol=protocol, progress=told)
    found = {}
    for name in models:
        path = workspace.eval_path(name)
        record = read_eval(path)
        answers = read_items(workspace.eval_path(name, OPEN)) if table.answers else {}
        found[name] = {
            "model_sha256": record["provenance"]["inputs"]["model_sha256"],
            "correct": {column: [item.correct for item in items] for column, items in read_items(path).items()},
            "remarks": record["remarks"],
            "answers": {
                column: [Said(str(each.outcome), each.paraphrased, each.repeated) for each in given]
                for column, given in answers.items()
                if column not in LEFT_OUT
            }
            or None,
        }
    return found


def _cell(
    workspace: Workspace,
    table: Experiment,
    row: Row,
    seed: int,
    long_enough: Callable[[Sequence[Mapping[str, Any]]], bool],
    told: Told,
) -> dict[str, Any]:
    """One row on one level: the fixed budget, and a longer run where that does not reach matched forgetting."""
    begin, where = time.monotonic(), {"row": row.key, "unlearning": seed}
    told.worked = False
    told.log("cell", **where)
    try:
        model, record, density = run_row(workspace, row, seed=seed, progress=told)
    except UnusableData as error:
        told.tell(f"{row.label} failed: {error}")
        told.log("failed", **where, reason=str(error))
        return {"failed": str(error)}
    except MissingArtifact as error:
        if row.settings.get("reference") != "reference" or workspace.model_dir("reference").exists():
            raise
        command = f"mmsurgery -w {workspace.root} train reference"
        told.tell(f"{row.label} left out: there is no reference model ({command})")
        told.log("failed", **where, reason=str(error))
        return {"failed": "there is no reference model"}
    evaluations = record["evaluations"]
    if not long_enough(evaluations):
        try:
            longer = run_row(workspace, row, seed=seed, budgets=FURTHER, progress=told)
            evaluations = longer[1]["evaluations"]
        except UnusableData as error:  # the fixed budget stands, matched forgetting was not reached
            told.tell(f"{row.label}, longer run: {error}")
    for entry in evaluations:
        told.log("evaluation", **where, model=model, step=entry["step"], columns=entry["columns"])
    cell = {
        "model": model,
        "density": density,
        "learning_rate": record["provenance"]["settings"]["learning_rate"],
        "run_key": record["provenance"]["key"],
        "steps": record["steps"]["done"],
        "samples": record["samples"],
        "evaluations": evaluations,
        **scored(workspace, table, [model], told)[model],
    }
    if table.audit:
        told.tell(f"{row.label}: audit")
        cell["audit"] = audited(
            workspace, _at_matched_forgetting(workspace, row, seed, evaluations, long_enough, told), told
        )
    if table.deviations:
        cell["deviation"] = deviation(workspace, model, n=_counted(workspace, table, told), progress=told)
    seconds = time.monotonic() - begin
    told.tell(f"{row.label} done ({seconds:.0f} s)" if told.worked else f"{row.label} found")
    told.log("done" if told.worked else "found", **where, model=model, seconds=round(seconds, 1))
    return cell


def _at_matched_forgetting(
    workspace: Workspace,
    row: Row,
    seed: int,
    evaluations: Sequence[Mapping[str, Any]],
    long_enough: Callable[[Sequence[Mapping[str, Any]]], bool],
    told: Told,
) -> str:
    """The row's model at the first evaluated step that is at matched forgetting, made anew up to there; that of the
    longest run if none is."""
    last = evaluations[-1]["step"]
    steps = next(
        (e["step"] for place, e in enumerate(evaluations, 1) if e["step"] and long_enough(evaluations[:place])), last
    )
    return run_row(workspace, row, seed=seed, budgets=FURTHER, steps=steps, progress=told)[0]


def run_row(
    workspace: Workspace, row: Row, *, seed: int, budgets: int = 1, steps: int | None = None, progress: Progress
) -> tuple[str, Mapping[str, Any], float | None]:
    """Make a row's model, or find it.

    Args:
        seed: of unlearning.
        budgets: how many times the recipe's epochs to run.
        steps: end after so many steps; the model is then named after them, too.

    Returns:
        The model's name, its run record, and the share of all weights that its mask selects.

    Raises:
        as `masks.build.build_mask` and `unlearn.apply.apply`.
    """
    chosen = workspace.settings.recipe
    fixed = row.recipe(chosen)
    recipe = dataclasses.replace(fixed, seed=seed, epochs=fixed.epochs * budgets)
    mask, density = row.mask_name(), None
    if mask is not None and row.mask is not None:
        drawn = seed if row.mask.get("control") == "random" else None
        if drawn not in (None, chosen.seed):
            mask = f"{mask}-{drawn}"
        density = build_mask(workspace, name=mask, seed=drawn, **row.mask, progress=progress).mask.density()
    planned = -(-len(workspace.samples("forget_vqa")) // recipe.batch_size) * fixed.epochs
    name = row.model_name(dataclasses.asdict(recipe)) + ("" if steps is None else f".at-{steps}")
    given = {key: value for key, value in row.settings.items() if key not in ("learning_rate", "retain_batch")}
    made = apply(
        workspace,
        row.method,
        mask=mask,
        name=name,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        retain_batch=row.retain_batch,
        learning_rate=row.settings.get("learning_rate", recipe.learning_rate),
        seed=seed,
        anchors=None if row.anchors is None else anchor_pictures(workspace, row.anchors),
        eval_every=max(1, planned // POINTS) if steps is None else 0,
        steps=steps,
        progress=progress,
        **given,
    )
    return name, read_record(made.path), density


def _counted(workspace: Workspace, table: Experiment, told: Told) -> int:
    """How many of the weights that moved furthest are counted: as many as the compared row's mask selects."""
    mask = table.row(table.compared).mask
    if mask is None:
        raise ValueError(f"{table.name}: the row {table.compared} has no mask to count by")
    name = table.row(table.compared).mask_name()
    return build_mask(workspace, name=str(name), **mask, progress=told).mask.selected


def _texts(
    workspace: Workspace,
    table: Experiment,
    items: Mapping[str, Sequence[Item]],
    models: Sequence[str],
    cells: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
    """What was asked and answered, word by word, of an experiment that shows it: column -> item -> its question,
    gold answer, and every row's answer."""
    if not table.cases:
        return None
    given = {
        row: read_items(workspace.eval_path(model, OPEN))
        for row, model in (
            *((name, name) for name in models),
            *((k, c["model"]) for k, c in cells.items() if "model" in c),
        )
    }
    found: dict[str, Any] = {}
    for column, asked in items.items():
        answers = {row: {each.id: each for each in columns[column]} for row, columns in given.items()}
        found[column] = [
            {
                "id": item.id,
                "person": item.person,
                "question": item.question,
                "gold": item.options[item.gold] if item.options else item.gold,
                "picture": item.image is not None,
                "answers": {
                    row: {
                        "text": mine[item.id].raw_output,
                        "outcome": str(mine[item.id].outcome),
                        "paraphrased": mine[item.id].paraphrased,
                        "repeated": mine[item.id].repeated,
                    }
                    for row, mine in answers.items()
                },
            }
            for item in asked
        ]
    return found
