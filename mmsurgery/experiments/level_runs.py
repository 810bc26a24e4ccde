"""One level of a grid as results see it: its runs, their item scores, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmsurgery.evaluate.outcomes import outcome_counts
from mmsurgery.evaluate.statistics import forgetting_target
from mmsurgery.experiments.collapse import Collapse, collapsed
from mmsurgery.experiments.resampling import Asked
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

FORGET = "forget_vqa"
Made = Mapping[str, Any]
"""What `cells.run_level` gives for one level and unlearning seed."""
Judged = Callable[[str], bool]
"""Whether a person's items are looked at."""


class Said(NamedTuple):
    """What an open answer is."""

    outcome: str
    """One of `evaluate.outcomes.OUTCOMES`."""
    paraphrased: bool
    repeated: bool


def target_of(start: Mapping[str, Any], asked: Mapping[str, Any], kept: Any) -> float:
    """Forget VQA, 0-1, at which rows of a level are compared (see `evaluate.statistics.forgetting_target`).

    Args:
        start: scores of vanilla, and of gold where there is one.
        asked: column -> `{people, chance}`.
        kept: places of the items that are looked at.
    """
    gold = float(np.mean(np.asarray(start["gold"]["correct"][FORGET])[kept])) if "gold" in start else None
    return forgetting_target(gold=gold, chance=asked[FORGET]["chance"])


class LevelRuns:
    """One level's runs with their item scores."""

    def __init__(self, runs: Sequence[Made], judged: Judged | None) -> None:
        self._runs = {made["unlearning"]: made for made in runs}
        first = runs[0]
        self.about: dict[str, Any] = dict(first["level"])
        self.backbone: str = self.about["backbone"]
        self.seeds = list(self._runs)
        self.columns: Mapping[str, Any] = first["items"]
        self._sizes = {column: len(entry["people"]) for column, entry in self.columns.items()}
        self._kept = {
            column: np.flatnonzero([judged is None or judged(person) for person in entry["people"]])
            for column, entry in self.columns.items()
        }
        people = {column: [entry["people"][i] for i in self._kept[column]] for column, entry in self.columns.items()}
        self.asked = Asked((self.backbone, self.about["seed"]), people)
        self._start: Mapping[str, Any] = first["start"]
        self.about["target"] = target_of(self._start, self.columns, self._kept[FORGET])
        self.fixed: dict[str, dict[int, Correct]] = {}
        """Row, `vanilla` or `gold` -> run -> item scores at the end of the budget."""
        self.matched: dict[str, dict[int, Point]] = {}
        """Row -> run -> where it is at matched forgetting, where that was reached."""
        self._curves: dict[tuple[str, int], list[Point]] = {}
        for name, found in self._start.items():
            self.fixed[name] = {self.seeds[0]: self._correct(found)}
        for seed, made in self._runs.items():
            for row, cell in made["cells"].items():
                if "failed" not in cell:
                    self._take(row, seed, cell)

    def _take(self, row: str, seed: int, cell: Mapping[str, Any]) -> None:
        self.fixed.setdefault(row, {})[seed] = self._correct(cell)
        curve = unpack(cell["evaluations"], self._sizes, self._kept)
        self._curves[row, seed] = curve
        point = at_matched_forgetting(curve, self.about["target"])
        if point is not None:
            self.matched.setdefault(row, {})[seed] = point

    def _correct(self, found: Mapping[str, Any]) -> Correct:
        return {
            column: np.asarray(found["correct"][column], dtype=np.float64)[self._kept[column]]
            for column in self.columns
        }

    def value(self, comparison: str, row: str, what: str) -> Values | None:
        """A quantity of a row, or None where the row failed or did not reach matched forgetting in any run."""
        if comparison == "fixed":
            runs = self.fixed.get(row, {})
        else:
            runs = {seed: point.correct for seed, point in self.matched.get(row, {}).items()}
        return quantity(what, runs, self.asked) if runs else None

    def describe(self) -> dict[str, Any]:
        found = {
            name: {
                "model_sha256": entry["model_sha256"],
                "remarks": self._remarks(entry),
                **_columns(self.fixed[name][self.seeds[0]]),
            }
            for name, entry in self._start.items()
        }
        people = self.asked.people
        return {
            **self.about,
            "unlearning": self.seeds,
            "vanilla": found["vanilla"],
            "gold": found.get("gold"),
            "n": {column: len(about) for column, about in people.items()},
            "people": {column: len(set(about)) for column, about in people.items()},
        }

    def _remarks(self, found: Mapping[str, Any]) -> dict[str, list[str]]:
        return {column: said for column, said in found["remarks"].items() if column in self.columns}

    def cells(self, experiment: Experiment, panel: str) -> list[dict[str, Any]]:
        where = {key: self.about[key] for key in ("backbone", "seed", "draw", "forget")}
        return [
            {"panel": panel, **where, "unlearning": seed, "row": row.key, **self._cell(row.key, seed)}
            for seed in self.seeds
            for row in experiment.rows
        ]

    def _cell(self, row: str, seed: int) -> dict[str, Any]:
        cell = self._runs[seed]["cells"][row]
        if "failed" in cell:
            return {"failed": cell["failed"]}
        point, curve = self.matched.get(row, {}).get(seed), self._curves[row, seed]
        fixed, fallen = _columns(self.fixed[row][seed]), self.collapsed(row, seed)
        names = ("model", "model_sha256", "run_key", "density", "learning_rate", "steps", "samples")
        return {
            **{key: cell[key] for key in names},
            "outcomes": self._outcomes(cell),
            "remarks": self._remarks(cell),
            "fixed": fixed,
            "matched": None if point is None else {"step": point.step, **_columns(point.correct)},
            "searched": int(curve[-1].step),
            "curve": [{"step": int(at.step), **_columns(at.correct)} for at in curve],
            "collapsed": None if fallen is None else fallen.reason,
            "severity": None if fallen is None else fallen.severity,
        }

    def collapsed(self, row: str, seed: int) -> Collapse | None:
        """Why a run counts as collapsed, or None."""
        before, after = (accuracies(self.fixed[name][run]) for name, run in (("vanilla", self.seeds[0]), (row, seed)))
        chances = {column: entry["chance"] for column, entry in self.columns.items()}
        said = self._outcomes(self._runs[seed]["cells"][row])
        return collapsed(before, after, chances, self._outcomes(self._start["vanilla"]), said)

    def _outcomes(self, found: Mapping[str, Any]) -> dict[str, dict[str, int]] | None:
        """Counts of the open answers of a model by column, None where it gave none."""
        answers = found.get("answers")
        if not answers:
            return None
        return {
            column: outcome_counts(Said(*answers[column][place]) for place in self._kept[column])
            for column in self.columns
            if column in answers
        }

    def outcomes(self, row: str) -> list[Mapping[str, Mapping[str, int]]]:
        """Of a row's runs, or of vanilla or gold, by column."""
        found = [self._start[row]] if row in self._start else [made["cells"][row] for made in self._runs.values()]
        return [counts for entry in found if (counts := self._outcomes(entry))]

    def deviations(self, row: str) -> list[Mapping[str, Any]]:
        cells = [made["cells"][row] for made in self._runs.values()]
        return [cell["deviation"] for cell in cells if "deviation" in cell]

    def audits(self, row: str, probe: str) -> list[tuple[int, Mapping[str, Any]]]:
        """(seed, what a probe says of the row) of each run that was audited."""
        cells = [(seed, made["cells"][row]) for seed, made in self._runs.items()]
        return [
            (seed, cell["audit"]["probes"][probe])
            for seed, cell in cells
            if "audit" in cell and probe in cell["audit"]["probes"]
        ]

    def texts(self) -> dict[str, Any]:
        """Questions and answers of the first run, and where they are from."""
        texts = self._runs[self.seeds[0]]["texts"]
        kept = {column: [texts[column][place] for place in self._kept[column]] for column in self.columns}
        return {"level": self.about, "columns": kept}


def _columns(correct: Correct) -> dict[str, Any]:
    columns = accuracies(correct)
    return {"columns": columns, "utility": utility(columns)}
