"""From made-up levels to results and tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.mask import pack
from mmsurgery.data.samples import Item
from mmsurgery.errors import UsageError
from mmsurgery.experiments import rows
from mmsurgery.experiments.results import assemble, target_of
from mmsurgery.experiments.tables import markdown, tables
from mmsurgery.provenance import check_seal

PEOPLE = {"forget_vqa": [f"f{i // 4}" for i in range(24)], "retain_qa": [f"r{i // 4}" for i in range(80)]}
EXPERIMENT = rows.Experiment("tried", "Tried", (rows.MMUNLEARNER, rows.GA_DIFF), "mmunlearner")


def right(share: float) -> dict[str, list[bool]]:
    return {column: [i < share * len(people) for i in range(len(people))] for column, people in PEOPLE.items()}


def scores(forget: float, retain: float) -> dict[str, list[bool]]:
    return {"forget_vqa": right(forget)["forget_vqa"], "retain_qa": right(retain)["retain_qa"]}


def cell(*curve: tuple[float, float]) -> dict[str, Any]:
    evaluations = [
        {
            "step": 8 * place,
            "correct": {c: pack(np.array(v)).tobytes().hex() for c, v in scores(*point).items()},
        }
        for place, point in enumerate(curve)
    ]
    return {
        "model": "m",
        "model_sha256": "ab" * 32,
        "density": 0.25,
        "run_key": "cd" * 32,
        "steps": 8 * (len(curve) - 1),
        "samples": {"forget": 32, "retain": 64},
        "evaluations": evaluations,
        "correct": scores(*curve[-1]),
        "remarks": {},
    }


def made(seed: int, **cells: Any) -> dict[str, Any]:
    start = {
        "vanilla": {"model_sha256": "aa" * 32, "correct": scores(1, 1), "remarks": {}},
        "gold": {"model_sha256": "bb" * 32, "correct": scores(0.25, 1), "remarks": {}},
    }
    return {
        "level": {"backbone": "llava", "seed": seed, "draw": seed, "folder": f"levels/{seed}", "target": 0.5},
        "items": {column: {"people": people, "chance": 0.25} for column, people in PEOPLE.items()},
        "start": start,
        "cells": cells,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    levels = [made(seed, mmunlearner=cell((1, 1), (0.5, 1)), ga_diff=cell((1, 1), (0.25, 0.25))) for seed in range(3)]
    return assemble(EXPERIMENT, levels)


def test_summary(results: dict[str, Any]) -> None:
    check_seal(results, "results", kind="experiment")
    summary = results["summary"]["llava"]
    assert summary["mmunlearner"]["fixed"]["utility"]["mean"] == 1
    assert summary["ga_diff"]["fixed"]["forget_vqa"] == {
        "mean": 0.25,
        "ci95": summary["ga_diff"]["fixed"]["forget_vqa"]["ci95"],
        "levels": 3,
        "n": 72,
    }
    matched = summary["ga_diff"]["matched"]
    # from 1 to 0.25 in 8 steps: 0.5 after two thirds of them, utility there 1 - 0.75 * 2/3
    assert matched["step"] == pytest.approx(16 / 3)
    assert matched["columns"]["utility"]["mean"] == pytest.approx(0.5)
    assert (matched["reached"], matched["levels"]) == (3, 3)
    assert summary["gold"]["matched"] is None


def test_pairs(results: dict[str, Any]) -> None:
    pairs = {(p["comparison"], p["quantity"]): p for p in results["paired"]}
    assert set(pairs) == {("fixed", "utility"), ("fixed", "forget_vqa"), ("matched", "utility")}
    utility = pairs["fixed", "utility"]
    assert utility["difference"] == pytest.approx(0.75)
    assert utility["resolved"]
    assert (utility["same_sign"], utility["levels"], utility["n"]) == (3, 3, 240)
    # two people a level differ, all in one sense: 2 of 2^6 sign flips are as extreme
    assert pairs["fixed", "forget_vqa"]["p_value"] == pytest.approx(2 / 2**6, abs=0.006)


def test_not_reached_and_failed() -> None:
    levels = [
        made(0, mmunlearner=cell((1, 1), (0.75, 1)), ga_diff={"failed": "step 3: the forget loss is nan"}),
        made(1, mmunlearner=cell((1, 1), (0.25, 1)), ga_diff=cell((1, 1), (0.25, 0.5))),
    ]
    found = assemble(EXPERIMENT, levels)
    summary = found["summary"]["llava"]
    assert (summary["mmunlearner"]["matched"]["reached"], summary["mmunlearner"]["matched"]["levels"]) == (1, 2)
    assert summary["ga_diff"]["fixed"]["utility"]["levels"] == 1
    first = next(c for c in found["cells"] if c["row"] == "mmunlearner" and c["seed"] == 0)
    assert first["matched"] is None
    assert first["searched"] == 8
    text = markdown(found)
    assert "1 of 2" in text
    assert "GA_Diff, seed 0: failed, step 3: the forget loss is nan" in text


def test_no_row_reached_nor_ran() -> None:
    failed = {"failed": "diverged"}
    found = assemble(EXPERIMENT, [made(0, mmunlearner=failed, ga_diff=failed)])
    assert found["paired"] == []
    assert "| MMUnlearner | - | - | - | - |" in markdown(found)


def test_tables(results: dict[str, Any]) -> None:
    fixed, matched, differences = tables(results)
    assert fixed.header == ("", "Forget VQA", "Retain QA", "Utility", "samples seen")
    assert [row[0] for row in fixed.rows] == ["vanilla", "gold", "MMUnlearner", "GA_Diff"]
    assert fixed.rows[2][1].startswith("50.0 (")
    assert fixed.rows[2][-1] == "32 + 64 (1:2)"
    assert fixed.rows[0][-1] == "-"
    assert matched.rows[1][1:3] == ("3 of 3", "5")
    assert differences.rows[0][0] == "MMUnlearner - GA_Diff, fixed budget"
    assert differences.rows[0][1].startswith("+75.0 (")
    assert differences.rows[0][1].endswith(", p < 0.001")


def test_table_cells_do_not_break_markdown(results: dict[str, Any]) -> None:
    rows_ = [{**row, "label": "a|b"} for row in results["rows"]]
    assert "a\\|b" in markdown({**results, "rows": rows_})


def test_target() -> None:
    item = Item("i", "p", "q", column="forget_vqa", options={"A": "1", "B": "2"}, gold="A")
    assert target_of({}, {"forget_vqa": [item]}) == pytest.approx(0.55)
    start = {"gold": {"correct": {"forget_vqa": [True, False, False, False]}}}
    assert target_of(start, {"forget_vqa": [item]}) == pytest.approx(0.30)


def test_names_of_rows() -> None:
    keys = [row.key for row in rows.CONTROLS.rows]
    assert len(set(keys)) == len(keys)
    recipe = {"epochs": 2}
    by_name = {row.model_name(recipe) for row in rows.CONTROLS.rows}
    assert len(by_name) == len(keys)
    shared = {row.model_name(recipe) for row in rows.TABLE1.rows} & by_name
    assert shared == {rows.MMUNLEARNER.model_name(recipe), rows.GA_DIFF.model_name(recipe)}
    assert rows.MMUNLEARNER.model_name({"epochs": 4}) not in by_name
    assert rows.TABLE1.needs_reference
    assert not rows.CONTROLS.needs_reference
    with pytest.raises(UsageError, match="table1"):
        rows.find("tabel1")
