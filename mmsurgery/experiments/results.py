"""From the runs of a grid to its results: what each row did on each level, and which differences are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.data.benchmark import COLUMN_LABELS, UTILITY
from mmsurgery.evaluate.statistics import LEVEL, forgetting_target
from mmsurgery.experiments import statistics
from mmsurgery.experiments.rows import Experiment
from mmsurgery.experiments.scores import (
    Correct,
    Point,
    Values,
    accuracies,
    at_matched_forgetting,
    quantity,
    unpack,
    utility,
)
from mmsurgery.provenance import SCHEMA, provenance, seal, sha256_json

FORGET = "forget_vqa"
PAIRED = ("utility", "forget_vqa", "forget_qa", "retain_vqa")
"""Quantities that rows are compared in; Forget VQA only at a fixed budget, it is what is matched."""

Made = Mapping[str, Any]
"""What `run.run_level` gives."""


def target_of(start: Mapping[str, Any], items: Mapping[str, Sequence[Any]]) -> float:
    """Forget VQA, 0-1, at which rows of a level are compared (see `evaluate.statistics.forgetting_target`)."""
    asked = items[FORGET]
    chance = sum(1 / len(item.options) for item in asked) / len(asked)
    gold = float(np.mean(start["gold"]["correct"][FORGET])) if "gold" in start else None
    return forgetting_target(gold=gold, chance=chance)


def assemble(experiment: Experiment, made: Sequence[Made]) -> dict[str, Any]:
    """The results file of an experiment, sealed.

    Args:
        made: one entry per level.
    """
    first = made[0]["items"]
    columns = {
        column: {"label": COLUMN_LABELS.get(column, column), "chance": entry["chance"]}
        for column, entry in first.items()
    }
    levels = [_Level(entry) for entry in made]
    backbones = list(dict.fromkeys(level.backbone for level in levels))
    quantities = ["utility", *columns]
    settings = {
        "experiment": experiment.name,
        "rows": [row.describe() for row in experiment.rows],
        "levels": [dict(entry["level"]) for entry in made],
    }
    inputs = {
        "models": sha256_json(
            [
                {
                    **{name: found["model_sha256"] for name, found in entry["start"].items()},
                    **{key: cell.get("run_key") for key, cell in entry["cells"].items()},
                }
                for entry in made
            ]
        )
    }
    return seal(
        {
            "schema": SCHEMA,
            "kind": "experiment",
            "name": experiment.name,
            "title": experiment.title,
            "rows": settings["rows"],
            "columns": columns,
            "utility": [column for column in UTILITY if column in columns],
            "levels": [level.describe() for level in levels],
            "cells": [cell for level in levels for cell in level.cells(experiment)],
            "summary": {
                backbone: _summary([level for level in levels if level.backbone == backbone], experiment, quantities)
                for backbone in backbones
            },
            "paired": [
                entry
                for backbone in backbones
                for entry in _paired([level for level in levels if level.backbone == backbone], backbone, experiment)
            ],
            "compared": experiment.compared,
            "provenance": provenance("experiment", settings, inputs),
        }
    )


class _Level:
    """One level's runs with their item scores."""

    def __init__(self, made: Made) -> None:
        self._made = made
        self.backbone: str = made["level"]["backbone"]
        self.target: float = made["level"]["target"]
        self.people = {column: entry["people"] for column, entry in made["items"].items()}
        self.sizes = {column: len(people) for column, people in self.people.items()}
        self.fixed: dict[str, Correct] = {
            name: {column: np.asarray(found["correct"][column], dtype=np.float64) for column in self.sizes}
            for name, found in [*made["start"].items(), *made["cells"].items()]
            if "correct" in found
        }
        """Row, `vanilla` or `gold` -> item scores at the end of the budget."""
        self.curves = {
            key: unpack(cell["evaluations"], self.sizes) for key, cell in made["cells"].items() if "evaluations" in cell
        }
        self.matched: dict[str, Point] = {}
        """Row -> the run at matched forgetting, where it was reached."""
        for key, curve in self.curves.items():
            point = at_matched_forgetting(curve, self.target)
            if point is not None:
                self.matched[key] = point

    def value(self, comparison: str, row: str, what: str) -> Values | None:
        """A quantity of a row, or None where the row failed or did not reach matched forgetting."""
        if comparison == "fixed":
            correct = self.fixed.get(row)
        else:
            correct = self.matched[row].correct if row in self.matched else None
        return None if correct is None else quantity(what, correct, self.people)

    def describe(self) -> dict[str, Any]:
        start = self._made["start"]
        found = {
            name: {
                "model_sha256": entry["model_sha256"],
                "remarks": self._remarks(entry),
                **_columns(self.fixed[name]),
            }
            for name, entry in start.items()
        }
        return {
            **self._made["level"],
            "vanilla": found["vanilla"],
            "gold": found.get("gold"),
            "n": self.sizes,
            "people": {column: len(set(people)) for column, people in self.people.items()},
        }

    def _remarks(self, found: Mapping[str, Any]) -> dict[str, list[str]]:
        return {column: said for column, said in found["remarks"].items() if column in self.sizes}

    def cells(self, experiment: Experiment) -> list[dict[str, Any]]:
        where = {key: self._made["level"][key] for key in ("backbone", "seed", "draw")}
        return [{**where, "row": row.key, **self._cell(row.key)} for row in experiment.rows]

    def _cell(self, row: str) -> dict[str, Any]:
        cell = self._made["cells"][row]
        if "failed" in cell:
            return {"failed": cell["failed"]}
        point, curve = self.matched.get(row), self.curves[row]
        return {
            **{key: cell[key] for key in ("model", "model_sha256", "run_key", "density", "steps", "samples")},
            "remarks": self._remarks(cell),
            "fixed": _columns(self.fixed[row]),
            "matched": None if point is None else {"step": point.step, **_columns(point.correct)},
            "searched": int(curve[-1].step),
            "curve": [{"step": int(at.step), **_columns(at.correct)} for at in curve],
        }


def _columns(correct: Correct) -> dict[str, Any]:
    columns = accuracies(correct)
    return {"columns": columns, "utility": utility(columns)}


def _summary(levels: Sequence[_Level], experiment: Experiment, quantities: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = [name for name in ("vanilla", "gold") if all(name in level.fixed for level in levels)]
    for name in [*names, *(row.key for row in experiment.rows)]:
        found[name] = {
            "fixed": _means([level for level in levels if name in level.fixed], "fixed", name, quantities),
            "matched": None,
        }
        if name in names:
            continue
        reached = [level for level in levels if name in level.matched]
        steps = [level.matched[name].step for level in reached]
        found[name]["matched"] = {
            "reached": len(reached),
            "levels": len(levels),
            "step": sum(steps) / len(steps) if steps else None,
            "columns": _means(reached, "matched", name, quantities),
        }
    return found


def _means(levels: Sequence[_Level], comparison: str, row: str, quantities: Sequence[str]) -> dict[str, Any]:
    found = {}
    for what in quantities:
        values = [value for level in levels if (value := level.value(comparison, row, what)) is not None]
        if values:
            found[what] = {
                "mean": float(np.mean([value.mean for value in values])),
                "ci95": list(statistics.interval(values)),
                "levels": len(values),
                "n": sum(value.n for value in values),
            }
    return found


def _paired(levels: Sequence[_Level], backbone: str, experiment: Experiment) -> list[dict[str, Any]]:
    """The compared row against every other; within one quantity, p values are adjusted for their number."""
    found = []
    others = [row.key for row in experiment.rows if row.key != experiment.compared]
    for comparison in ("fixed", "matched"):
        for what in PAIRED:
            if (what != "utility" and what not in levels[0].sizes) or (comparison, what) == ("matched", FORGET):
                continue
            family = [
                entry
                for row in others
                if (entry := _pair(levels, comparison, what, experiment.compared, row)) is not None
            ]
            adjusted = statistics.holm([entry["p_value"] for entry in family])
            for entry, p_adjusted in zip(family, adjusted, strict=True):
                low, high = entry["ci95"]
                resolved = p_adjusted < LEVEL and not low <= 0 <= high
                found.append({"backbone": backbone, **entry, "p_adjusted": p_adjusted, "resolved": resolved})
    return found


def _pair(levels: Sequence[_Level], comparison: str, what: str, first: str, second: str) -> dict[str, Any] | None:
    """Two rows on the levels on which both have a value; None where there is none."""
    pairs = []
    for level in levels:
        one, other = level.value(comparison, first, what), level.value(comparison, second, what)
        if one is not None and other is not None:
            pairs.append((one, other))
    if not pairs:
        return None
    compared = statistics.compare([one for one, _ in pairs], [other for _, other in pairs])
    return {
        "comparison": comparison,
        "quantity": what,
        "first": first,
        "second": second,
        "difference": compared.difference,
        "ci95": list(compared.ci95),
        "p_value": compared.p_value,
        "same_sign": compared.same_sign,
        "levels": compared.levels,
        "people": compared.people,
        "n": sum(one.n for one, _ in pairs),
    }
