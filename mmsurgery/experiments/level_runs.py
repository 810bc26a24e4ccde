"""One level of a grid as results see it: its runs, their item scores, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.experiments.collapse import collapsed
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

Made = Mapping[str, Any]
"""What `cells.run_level` gives for one level and unlearning seed."""
Judged = Callable[[str], bool]
"""Whether a person's items are looked at."""


class LevelRuns:
    """One level's runs with their item scores."""

    def __init__(self, runs: Sequence[Made], judged: Judged | None) -> None:
        self._runs = {made["unlearning"]: made for made in runs}
        first = runs[0]
        self.about: dict[str, Any] = dict(first["level"])
        self.backbone: str = self.about["backbone"]
        self.seeds = list(self._runs)
        self.target: float = self.about["target"]
        self.columns: Mapping[str, Any] = first["items"]
        self._sizes = {column: len(entry["people"]) for column, entry in self.columns.items()}
        self._kept = {
            column: np.flatnonzero([judged is None or judged(person) for person in entry["people"]])
            for column, entry in self.columns.items()
        }
        people = {column: [entry["people"][i] for i in self._kept[column]] for column, entry in self.columns.items()}
        self.asked = Asked((self.backbone, self.about["seed"]), people)
        self._start: Mapping[str, Any] = first["start"]
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
        point = at_matched_forgetting(curve, self.target)
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
        fixed = _columns(self.fixed[row][seed])
        names = ("model", "model_sha256", "run_key", "density", "learning_rate", "steps", "samples", "outcomes")
        return {
            **{key: cell[key] for key in names},
            "remarks": self._remarks(cell),
            "fixed": fixed,
            "matched": None if point is None else {"step": point.step, **_columns(point.correct)},
            "searched": int(curve[-1].step),
            "curve": [{"step": int(at.step), **_columns(at.correct)} for at in curve],
            "collapsed": self.collapsed(row, seed),
        }

    def collapsed(self, row: str, seed: int) -> str | None:
        """Why a run counts as collapsed, or None."""
        before, after = (accuracies(self.fixed[name][run]) for name, run in (("vanilla", self.seeds[0]), (row, seed)))
        chances = {column: entry["chance"] for column, entry in self.columns.items()}
        said = self._runs[seed]["cells"][row]["outcomes"]
        return collapsed(before, after, chances, self._start["vanilla"]["outcomes"], said)

    def outcomes(self, row: str) -> list[Mapping[str, Mapping[str, int]]]:
        """Of a row's runs, or of vanilla or gold, by column."""
        found = [self._start[row]] if row in self._start else [made["cells"][row] for made in self._runs.values()]
        return [entry["outcomes"] for entry in found if entry.get("outcomes")]

    def deviations(self, row: str) -> list[Mapping[str, Any]]:
        cells = [made["cells"][row] for made in self._runs.values()]
        return [cell["deviation"] for cell in cells if "deviation" in cell]

    def texts(self) -> dict[str, Any]:
        """Questions and answers of the first run, and where they are from."""
        made = self._runs[self.seeds[0]]
        return {"level": self.about, "columns": made["texts"]}


def _columns(correct: Correct) -> dict[str, Any]:
    columns = accuracies(correct)
    return {"columns": columns, "utility": utility(columns)}
