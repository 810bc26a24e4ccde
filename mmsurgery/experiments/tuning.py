"""Learning rates by method, chosen where nothing is judged: on other vanilla models, or on other people."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmsurgery.errors import UsageError
from mmsurgery.experiments.results import assemble
from mmsurgery.experiments.rows import Experiment, Row

FACTORS = (0.3, 1.0, 3.0)
"""Learning rates that are tried, in units of the recipe's."""
SEEDS = (1000, 1001)
"""Vanilla models, and draws of people, that rates are chosen on; experiments judge on others."""
SHARE = 3
"""Where vanilla is given, rates are chosen on the scores of one person in so many, and the others judge."""


def candidates(table: Experiment, learning_rate: float) -> Experiment:
    """Every row at every learning rate, as an experiment of its own."""
    rows = [
        dataclasses.replace(row.at(rate), key=_key(row, rate), label=f"{row.label} at {rate:g}")
        for row in table.rows
        for rate in rates(learning_rate)
    ]
    return dataclasses.replace(
        table,
        rows=tuple(rows),
        compared=_key(table.row(table.compared), rates(learning_rate)[0]),
        by_ratio=False,
        deviations=False,
        cases=False,
        answers=False,
    )


def rates(learning_rate: float) -> list[float]:
    return [float(f"{factor * learning_rate:.6g}") for factor in FACTORS]


def _key(row: Row, rate: float) -> str:
    return f"{row.key}@{rate:g}"


def choose(
    table: Experiment, made: Sequence[Mapping[str, Any]], learning_rate: float, *, people: frozenset[str] | None
) -> dict[str, dict[str, Any]]:
    """Backbone -> row -> `{learning_rate, on, tried}`: most runs that reach matched forgetting, then the highest
    utility there, then the rate nearest to the recipe's.

    Args:
        made: the runs of `candidates`.
        people: whose scores count; everybody's where None.
    """
    results = assemble(
        candidates(table, learning_rate), made, judged=None if people is None else lambda person: person in people
    )
    where = f"seeds {', '.join(map(str, SEEDS))}" if people is None else f"{len(people)} people"
    found: dict[str, dict[str, Any]] = {}
    for panel in results["panels"]:
        chosen = found.setdefault(panel["backbone"], {})
        for row in table.rows:
            tried = [
                _tried(results["summary"][panel["key"]][_key(row, rate)]["matched"], rate)
                for rate in rates(learning_rate)
            ]
            best = max(tried, key=lambda each: (*_worth(each), -abs(each["learning_rate"] - learning_rate)))
            chosen[row.key] = {"learning_rate": best["learning_rate"], "on": where, "tried": tried}
    return found


def _tried(matched: Mapping[str, Any], rate: float) -> dict[str, Any]:
    reached = matched["columns"].get("utility")
    return {
        "learning_rate": rate,
        "utility": None if reached is None else reached["mean"],
        "reached": matched["reached"],
        "levels": matched["levels"],
    }


def _worth(tried: Mapping[str, Any]) -> tuple[int, float]:
    return tried["reached"], -1.0 if tried["utility"] is None else tried["utility"]


def tuned(table: Experiment, chosen: Mapping[str, Mapping[str, Any]]) -> Experiment:
    """The experiment with every row at its learning rate."""
    rows = tuple(row.at(chosen[row.key]["learning_rate"]) for row in table.rows)
    return dataclasses.replace(table, rows=rows, title=f"{table.title}, learning rates tuned by method")


def validation_people(columns: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """One person in three of those with items in the same columns, by the digest of their keys.

    Args:
        columns: column -> whom its items are about.

    Raises:
        UsageError: naming a column in which nobody would be left on one of the two sides.
    """
    inside: dict[str, list[str]] = {}
    for column, people in columns.items():
        for person in dict.fromkeys(people):
            inside.setdefault(person, []).append(column)
    kinds: dict[tuple[str, ...], list[str]] = {}
    for person, found in inside.items():
        kinds.setdefault(tuple(found), []).append(person)
    chosen: set[str] = set()
    for members in kinds.values():
        ranked = sorted(members, key=lambda person: hashlib.sha256(person.encode()).digest())
        chosen |= set(ranked[: max(1, len(ranked) // SHARE)] if len(ranked) > 1 else [])
    for column, people in columns.items():
        asked = set(people)
        if not asked & chosen or not asked - chosen:
            raise UsageError(
                f"{column} asks about {len(asked)} people: too few to tune on some and judge on others",
                "leave --tune out",
            )
    return frozenset(chosen)
