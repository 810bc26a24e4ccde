"""From the runs of a grid to its results: what each row did on each level, and which differences are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.data.benchmark import COLUMN_LABELS, UTILITY
from mmsurgery.evaluate.statistics import LEVEL, holm
from mmsurgery.experiments import audits, statistics
from mmsurgery.experiments.cases import chosen_cases
from mmsurgery.experiments.claims import claims
from mmsurgery.experiments.deviations import mean_deviation
from mmsurgery.experiments.findings import findings
from mmsurgery.experiments.level_runs import FORGET, Judged, LevelRuns, Made
from mmsurgery.experiments.rows import Experiment
from mmsurgery.provenance import SCHEMA, provenance, seal, sha256_json

PAIRED = ("utility", FORGET, "forget_qa", "retain_vqa", "realworld_vqa")
"""Quantities that rows are compared in; Forget VQA only at a fixed budget, it is what is matched."""
OUTCOMES = ("correct", "other_person", "wrong", "refusal", "gibberish")
"""What an open answer can be, see `evaluate.outcomes`."""


def assemble(
    experiment: Experiment,
    made: Sequence[Made],
    *,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
    judged: Judged | None = None,
) -> dict[str, Any]:
    """The results file of an experiment, sealed.

    Args:
        made: one entry per level and unlearning seed.
        tuned: backbone -> row -> its learning rate, and on what it was chosen.
        judged: whose items count; everybody's where None.
    """
    levels = _levels(made, judged)
    first = levels[0].columns
    columns = {
        column: {"label": COLUMN_LABELS.get(column, column), "chance": entry["chance"]}
        for column, entry in first.items()
    }
    panels = _panels(experiment, levels)
    rows = [row.describe() for row in experiment.rows]
    settings = {
        "experiment": experiment.name,
        "rows": rows,
        "levels": [{**level.about, "unlearning": level.seeds} for level in levels],
        "tuned": None if tuned is None else {backbone: dict(found) for backbone, found in tuned.items()},
    }
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "experiment",
        "name": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "rows": rows,
        "columns": columns,
        "utility": [column for column in UTILITY if column in columns],
        "compared": experiment.compared,
        "panels": [panel.describe() for panel in panels],
        "levels": [{"panel": panel.key, **level.describe()} for panel in panels for level in panel.levels],
        "cells": [cell for panel in panels for level in panel.levels for cell in level.cells(experiment, panel.key)],
        "summary": {panel.key: _summary(panel.levels, experiment, ["utility", *columns]) for panel in panels},
        "paired": [entry for panel in panels for entry in _paired(panel, experiment)],
    }
    if experiment.deviations:
        results["deviations"] = {panel.key: _deviations(panel.levels, experiment) for panel in panels}
    if experiment.audit:
        results["audit"] = {panel.key: audits.summary(panel.levels, experiment) for panel in panels}
    if experiment.cases:
        results["cases"] = chosen_cases([(panel.key, panel.levels[0].texts()) for panel in panels], experiment)
    if tuned is not None:
        results["tuned"] = {panel.key: dict(tuned[panel.backbone]) for panel in panels}
    results["findings"] = findings(results)
    results["claims"] = claims(results)
    return seal({**results, "provenance": provenance("experiment", settings, {"models": _models(made)})})


def _models(made: Sequence[Made]) -> str:
    """One digest of all models."""
    return sha256_json(
        [
            {
                **{name: found["model_sha256"] for name, found in entry["start"].items()},
                **{key: cell.get("run_key") for key, cell in entry["cells"].items()},
            }
            for entry in made
        ]
    )


class _Panel:
    """The levels of one table."""

    def __init__(self, key: str, label: str, levels: list[LevelRuns]) -> None:
        self.key, self.label, self.levels = key, label, levels
        self.backbone = levels[0].backbone

    def describe(self) -> dict[str, Any]:
        forget = self.levels[0].about["forget"]
        return {"key": self.key, "label": self.label, "backbone": self.backbone, "forget": forget}


def _levels(made: Sequence[Made], judged: Judged | None) -> list[LevelRuns]:
    found: dict[str, list[Made]] = {}
    for entry in made:
        # what one of them is not asked cannot be compared
        shared = {column: asked for column, asked in entry["items"].items() if all(column in e["items"] for e in made)}
        found.setdefault(entry["level"]["folder"], []).append({**entry, "items": shared})
    return [LevelRuns(runs, judged) for runs in found.values()]


def _panels(experiment: Experiment, levels: Sequence[LevelRuns]) -> list[_Panel]:
    found: dict[tuple[str, str], list[LevelRuns]] = {}
    for level in levels:
        key, label = level.backbone, level.backbone
        if experiment.by_ratio:
            key, label = f"{key}.{level.about['forget']}", f"{label}, forget {level.about['forget']} %"
        found.setdefault((key, label), []).append(level)
    return [_Panel(key, label, inside) for (key, label), inside in found.items()]


def _summary(levels: Sequence[LevelRuns], experiment: Experiment, quantities: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    anchors = [name for name in ("vanilla", "gold") if all(name in level.fixed for level in levels)]
    for name in [*anchors, *(row.key for row in experiment.rows)]:
        found[name] = {
            "fixed": _means(levels, "fixed", name, quantities),
            "matched": None,
            "outcomes": _outcomes(levels, name),
            "collapsed": 0,
            "cells": len(levels),
        }
        if name in anchors:
            continue
        runs = [(level, seed) for level in levels for seed in level.fixed.get(name, {})]
        steps = [point.step for level in levels for point in level.matched.get(name, {}).values()]
        found[name] |= {
            "matched": {
                "reached": len(steps),
                "levels": sum(len(level.seeds) for level in levels),
                "step": sum(steps) / len(steps) if steps else None,
                "columns": _means(levels, "matched", name, quantities),
            },
            "collapsed": sum(level.collapsed(name, seed) is not None for level, seed in runs),
            "cells": len(runs),
        }
    return found


def _means(levels: Sequence[LevelRuns], comparison: str, row: str, quantities: Sequence[str]) -> dict[str, Any]:
    found = {}
    for what in quantities:
        values = [value for level in levels if (value := level.value(comparison, row, what)) is not None]
        if values:
            found[what] = {
                "mean": statistics.mean(values),
                "ci95": list(statistics.interval(values)),
                "levels": len(values),
                "n": sum(value.n for value in values),
            }
    return found


def _outcomes(levels: Sequence[LevelRuns], row: str) -> dict[str, Any] | None:
    """Mean over runs of the share of each outcome, by column."""
    runs = [found for level in levels for found in level.outcomes(row)]
    if not runs:
        return None
    return {
        column: {
            outcome: float(np.mean([run[column][outcome] / run[column]["n"] for run in runs])) for outcome in OUTCOMES
        }
        for column in runs[0]
    }


def _paired(panel: _Panel, experiment: Experiment) -> list[dict[str, Any]]:
    """The compared row against every other; within one quantity, p values are adjusted for their number (rows that
    vary one thing are a family of their own)."""
    found = []
    others = [row for row in experiment.rows if row.key != experiment.compared]
    groups = list(dict.fromkeys(row.group for row in others))
    for comparison in ("fixed", "matched"):
        for what in PAIRED:
            if (what != "utility" and what not in panel.levels[0].columns) or (comparison, what) == ("matched", FORGET):
                continue
            for group in groups:
                family = [
                    entry
                    for row in others
                    if row.group == group
                    and (entry := _pair(panel.levels, comparison, what, experiment.compared, row.key)) is not None
                ]
                adjusted = holm([entry["p_value"] for entry in family])
                for entry, p_adjusted in zip(family, adjusted, strict=True):
                    low, high = entry["ci95"]
                    resolved = p_adjusted < LEVEL and not low <= 0 <= high
                    within = {"rows": len(family), "resolvable": statistics.resolvable(entry["people"], len(family))}
                    found.append({"panel": panel.key, "backbone": panel.backbone, **entry, **within})
                    found[-1] |= {"p_adjusted": p_adjusted, "resolved": resolved}
    return found


def _pair(levels: Sequence[LevelRuns], comparison: str, what: str, first: str, second: str) -> dict[str, Any] | None:
    """Two rows on the levels on which both have a value; None where there is none."""
    pairs = []
    for level in levels:
        one, other = level.value(comparison, first, what), level.value(comparison, second, what)
        if one is not None and other is not None:
            pairs.append((one, other))
    compared = statistics.compare([one for one, _ in pairs], [other for _, other in pairs]) if pairs else None
    if compared is None:
        return None
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
        "n": compared.n,
    }


def _deviations(levels: Sequence[LevelRuns], experiment: Experiment) -> dict[str, Any]:
    found = {row.key: [each for level in levels for each in level.deviations(row.key)] for row in experiment.rows}
    return {row: mean_deviation(each) for row, each in found.items() if each}
