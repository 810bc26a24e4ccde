"""Single answers that are shown (Tables 3 and 6): chosen by a rule, not by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmsurgery.experiments.rows import Experiment

COLUMNS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa", "realworld_vqa")
"""Columns that cases are taken from: removal of visual concepts, textual knowledge, what was not to be touched."""
FORGET = COLUMNS[0]
PER_COLUMN = 3
RULE = (
    f"Of the items that vanilla answers correctly, on the first level: in Forget VQA the hardest to forget (those that "
    f"the most rows still answer correctly, though not all), elsewhere the hardest to keep (those that the most rows "
    f"lost, though not all); at most one per person, ties in the order of the file, {PER_COLUMN} a column. They are "
    f"extremes, not averages: what a row says here it need not say often."
)


def chosen_cases(panels: Sequence[tuple[str, Mapping[str, Any]]], experiment: Experiment) -> dict[str, Any]:
    """The cases of an experiment.

    Args:
        panels: key, and what was asked and answered on its first level (`cells.run_level`'s `texts`, and `level`).
    """
    entries = []
    for panel, texts in panels:
        level = {key: texts["level"][key] for key in ("backbone", "seed", "draw", "forget", "folder")}
        for column in COLUMNS:
            for item in _hardest(column, texts["columns"].get(column, ()), [row.key for row in experiment.rows]):
                answers = [{"row": row, **answer} for row, answer in item["answers"].items()]
                entries.append({"panel": panel, **level, "column": column, **item, "answers": answers})
    return {"rule": RULE, "entries": entries}


def _hardest(column: str, items: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> list[Mapping[str, Any]]:
    def right(item: Mapping[str, Any], row: str) -> bool:
        return bool(item["answers"][row]["outcome"] == "correct")

    known = [item for item in items if right(item, "vanilla")]
    ranked = []
    for place, item in enumerate(known):
        answered = [row for row in rows if row in item["answers"]]
        still = sum(right(item, row) for row in answered)
        if 0 < still < len(answered):
            ranked.append((-still if column == FORGET else still, place, item))
    chosen: dict[str, Mapping[str, Any]] = {}
    for _, _, item in sorted(ranked, key=lambda entry: entry[:2]):
        chosen.setdefault(str(item["person"]), item)
    return list(chosen.values())[:PER_COLUMN]
