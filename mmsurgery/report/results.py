"""An experiment's results as all its views read them: rows, columns, panels, and what belongs to which."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mmsurgery.errors import InputRefused
from mmsurgery.figures.looks import fallen, row_looks
from mmsurgery.report import words
from mmsurgery.report.fields import Fields
from mmsurgery.report.texts import NAME, cut

UTILITY, FORGET = "utility", "forget_vqa"
COMPARISONS = {"fixed": "Fixed budget", "matched": "Matched forgetting"}
ANCHORS = {"vanilla": "vanilla", "gold": "gold"}


@dataclass(frozen=True)
class PanelKey:
    """One table of an experiment."""

    key: str
    label: str
    backbone: str
    forget: int
    """Percent of the people that are forgotten."""


class Results:
    """The record of an experiment.

    Raises:
        InputRefused: here and in every method, if something is missing, of another type, or names a row, column
            or panel that is not there.
    """

    def __init__(self, found: Fields) -> None:
        self.found = found
        self.rows = {row.get("key").text(): row for row in found.get("rows").entries()}
        columns = _in_order(found.get("columns").items())
        self.columns = {key: cut(column.get("label").text(), NAME) for key, column in columns.items()}
        self.chances = {
            key: column.get("chance").share() if column.has("chance") else None for key, column in columns.items()
        }
        self.utility = [self.column(each) for each in found.get("utility").entries()]
        self.labels = {**ANCHORS, **{key: cut(row.get("label").text(), NAME) for key, row in self.rows.items()}}
        self.groups = {
            key: cut(row.get("group").text(), NAME) if row.has("group") else "" for key, row in self.rows.items()
        }
        self.compared = self.row(found.get("compared"))
        self.looks = row_looks(list(self.rows), self.compared)
        self.panels = [
            PanelKey(
                panel.get("key").text(),
                cut(panel.get("label").text(), NAME),
                panel.get("backbone").text(),
                panel.get("forget").whole(),
            )
            for panel in found.get("panels").entries()
        ]
        self._lists = {
            what: [(entry.get("panel").text(), entry) for entry in found.get(what).entries()]
            for what in ("levels", "cells", "paired")
        }

    def row(self, key: Fields) -> str:
        """A row's key, or `vanilla` or `gold`."""
        if key.text() not in self.labels:
            raise _unknown(key, "row")
        return key.text()

    def label(self, key: Fields) -> str:
        return self.labels[self.row(key)]

    def column(self, key: Fields) -> str:
        if key.text() not in self.columns:
            raise _unknown(key, "column")
        return key.text()

    def quantity(self, name: str) -> str:
        """The label of a column or of the utility."""
        return self.columns.get(name) or cut(words.column(name), NAME)

    def levels(self, panel: str) -> list[Fields]:
        return [entry for key, entry in self._lists["levels"] if key == panel]

    def cells(self, panel: str) -> list[Fields]:
        return [entry for key, entry in self._lists["cells"] if key == panel]

    def paired(self, panel: str) -> list[Fields]:
        return [entry for key, entry in self._lists["paired"] if key == panel]

    def runs(self, panel: str, row: str) -> list[Fields]:
        """The cells of a row that did not fail."""
        return [c for c in self.cells(panel) if c.get("row").text() == row and not c.has("failed")]

    def summary(self, panel: str) -> dict[str, Fields]:
        """Vanilla and gold, then the rows in their order."""
        found = self.found.get("summary").get(panel).items()
        return {key: found[key] for key in (*ANCHORS, *self.rows) if key in found}

    @functools.cached_property
    def fallen(self) -> str:
        """What a run is that no longer answers what it should have kept: `collapsed`, or `at chance`."""
        panels = [self.summary(panel.key) for panel in self.panels]
        return fallen(any(entry.has("outcomes") for summary in panels for entry in summary.values()))

    def level_of(self, panel: str, cell: Fields) -> Fields:
        """The level that a cell, or a case, stands on."""
        where = [cell.get(key).whole() for key in ("seed", "draw") if key in cell.mapping()]
        for level in self.levels(panel):
            if [level.get(key).whole() for key in ("seed", "draw")][: len(where)] == where:
                return level
        raise InputRefused(f"{cell.where}: there is no such level", "make it again")


def _in_order(columns: dict[str, Fields]) -> dict[str, Fields]:
    """Columns in the order of every table, which the file does not keep; unknown ones last."""
    return {key: columns[key] for key in (*words.COLUMNS, *sorted(columns)) if key in columns}


def run_label(cell: Fields) -> str:
    """Which level and unlearning seed a cell is of."""
    seed, draw, order = (cell.get(key).whole() for key in ("seed", "draw", "unlearning"))
    return f"seed {seed}, draw {draw}, unlearning {order}"


def _unknown(key: Fields, what: str) -> InputRefused:
    return InputRefused(f"{key.where}: there is no {what} '{cut(key.text(), NAME)}'", "make it again")
