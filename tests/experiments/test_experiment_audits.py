"""The audit of a grid, from made-up runs to results, tables, findings and the report's grid."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from mmsurgery.artifacts.mask import pack
from mmsurgery.audit.probes import PROBES
from mmsurgery.experiments import paper, rows
from mmsurgery.experiments.results import assemble
from mmsurgery.experiments.tables import tables
from mmsurgery.report import audits
from mmsurgery.report.fields import Fields
from mmsurgery.report.results import Results

PEOPLE = [f"person/{i // 4}" for i in range(40)]
ROWS = (paper.MMUNLEARNER, *(paper.TABLE1.row(key) for key in ("ga_diff", "npo")))
EXPERIMENT = rows.Experiment(
    name="audit", title="Tried", question="?", rows=ROWS, compared="mmunlearner", answers=False, audit=True
)
PROVED = {"reliable": True, "vanilla": True, "gold": True, "destroyed": True}


def probed(share: float, reference: float, *, verdict: str = "leaks", trio: Any = PROVED) -> dict[str, Any]:
    """What one probe says of a run: the first `share` of everybody's four questions, against the reference's."""

    def values(part: float) -> list[float]:
        return [float(i % 4 < 4 * part) for i in range(len(PEOPLE))]

    pair = {"people": PEOPLE, "values": values(share), "reference": values(reference)}
    kept = {"before": 0.9}
    return {
        "verdict": verdict,
        "trio": trio,
        "arm": "a",
        "kept": kept,
        "ways": {"arms": {"a": pair}, "chance": {"a": 0.25}, "worst": "above"},
    }


def cell(forget: float, probes: dict[str, Any]) -> dict[str, Any]:
    correct = [i % 4 < 4 * forget for i in range(len(PEOPLE))]
    kept = [True] * len(PEOPLE)
    packed = [
        {"forget_vqa": pack(np.array(each)).tobytes().hex(), "retain_qa": pack(np.array(kept)).tobytes().hex()}
        for each in (kept, correct)
    ]
    return {
        "model": "m",
        "model_sha256": "ab" * 32,
        "density": 0.25,
        "run_key": "cd" * 32,
        "steps": 8,
        "samples": {"forget": 32, "retain": 64},
        "evaluations": [{"step": 8 * place, "correct": each} for place, each in enumerate(packed)],
        "correct": {"forget_vqa": correct, "retain_qa": kept},
        "learning_rate": 3e-4,
        "remarks": {},
        "answers": None,
        "audit": {"model": "m.at-8", "probes": probes},
    }


def made(seed: int, cells: dict[str, Any]) -> dict[str, Any]:
    right = {"forget_vqa": [True] * len(PEOPLE), "retain_qa": [True] * len(PEOPLE)}
    start = {"vanilla": {"model_sha256": "aa" * 32, "correct": right, "remarks": {}, "answers": None}}
    return {
        "level": {"backbone": "llava", "seed": seed, "draw": seed, "forget": 10, "folder": f"levels/{seed}"},
        "unlearning": 0,
        "texts": None,
        "items": {column: {"people": PEOPLE, "chance": 0.25} for column in right},
        "start": start,
        "cells": cells,
    }


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    doubted = {**PROVED, "reliable": False, "vanilla": False}
    levels = [
        made(
            seed,
            {
                "mmunlearner": cell(0.25, {"relearning": probed(0.25, 0.25, verdict="no leak resolved")}),
                "ga_diff": cell(0.25, {"relearning": probed(1.0, 0.25), "probing": probed(0.5, 0.5, trio=doubted)}),
                "npo": cell(0.25, {"relearning": probed(0.0, 0.25, verdict="over-forgotten")}),
            },
        )
        for seed in range(3)
    ]
    return assemble(EXPERIMENT, levels)


def test_differences_are_those_of_the_paired_items(results: dict[str, Any]) -> None:
    said = {row: found["relearning"] for row, found in results["audit"]["llava"]["rows"].items()}
    assert {row: each["difference"] for row, each in said.items()} == {"mmunlearner": 0, "ga_diff": 0.75, "npo": -0.25}
    assert {row: each["resolved"] for row, each in said.items()} == {"mmunlearner": False, "ga_diff": True, "npo": True}
    assert said["ga_diff"]["leak"] == 1.0
    assert said["ga_diff"]["reference"] == 0.25
    assert (said["npo"]["n"], said["npo"]["people"], said["npo"]["levels"]) == (120, 30, 3)


def test_p_values_are_adjusted_for_the_rows(results: dict[str, Any]) -> None:
    said = [found["relearning"] for found in results["audit"]["llava"]["rows"].values()]
    ordered = sorted(said, key=lambda each: each["p_value"])
    assert ordered[0]["p_adjusted"] == pytest.approx(min(1.0, 3 * ordered[0]["p_value"]))
    assert all(low["p_adjusted"] <= high["p_adjusted"] for low, high in itertools.pairwise(ordered))


def test_a_probe_that_failed_its_trio_is_counted(results: dict[str, Any]) -> None:
    trio = results["audit"]["llava"]["trio"]
    assert trio["relearning"] == {"of": 3, "reliable": 3, "vanilla": 0, "gold": 0, "destroyed": 0}
    assert trio["probing"] == {"of": 3, "reliable": 0, "vanilla": 3, "gold": 0, "destroyed": 0}
    findings = results["findings"]["llava"]
    assert "Probing: not reliable here, it proved itself in none of 3 workspaces." in findings


def test_a_row_that_collapsed_is_not_praised_for_what_does_not_come_out(results: dict[str, Any]) -> None:
    cells = {row.key: cell(0.25, {"relearning": probed(0.25, 0.25, verdict="no leak resolved")}) for row in ROWS}
    for row, verdict, share in (("npo", "collapsed", 0.0), ("ga_diff", "leaks", 1.0)):
        cells[row] = cell(0.25, {"relearning": probed(share, 0.25, verdict=verdict)})
    findings = assemble(EXPERIMENT, [made(seed, cells) for seed in range(3)])["findings"]["llava"]
    assert "Relearning: above gold: GA_Diff (+75.0); below gold: NPO (-25.0, collapsed in 3 of 3 runs)." in findings
    assert not any(said.startswith("By what relearning brings back") for said in findings)  # of two rows that are left


def test_without_gold_a_probe_is_not_called_unreliable() -> None:
    untold = {"reliable": None, "vanilla": None, "gold": None, "destroyed": True}
    cells = {
        row.key: cell(0.25, {"collateral": probed(0.0, 0.5, verdict="damages others", trio=untold)}) for row in ROWS
    }
    findings = assemble(EXPERIMENT, [made(seed, cells) for seed in range(3)])["findings"]["llava"]
    assert any(said.startswith("Collateral (proved itself in 0 of 3 workspaces): below vanilla") for said in findings)


def test_findings_name_what_is_resolved_and_the_two_orders(results: dict[str, Any]) -> None:
    findings = results["findings"]["llava"]
    assert "Relearning: above gold: GA_Diff (+75.0); below gold: NPO (-25.0)." in findings
    assert any(
        said.startswith("By what relearning brings back above gold, least first: NPO, MMUnlearner, GA_Diff")
        for said in findings
    )


def test_the_table_has_a_column_for_each_probe_and_a_line_for_each_row(results: dict[str, Any]) -> None:
    audit = tables(results)[0]
    assert audit.header == ("", *(PROBES[name].title for name in ("relearning", "probing")))
    assert [row[0] for row in audit.rows] == ["MMUnlearner", "GA_Diff", "NPO", "proved itself"]
    assert audit.rows[1][1].startswith("+75.0* (")
    assert audit.rows[1][1].endswith("leaks 3")
    assert audit.rows[0][2] == "-"


def test_the_page_shows_the_same(results: dict[str, Any]) -> None:
    grid = audits.grid(Results(Fields(results, "results")), "llava")
    assert grid is not None
    assert [title for title, _ in grid.probes] == ["Relearning", "Probing"]
    assert dict(grid.rows)["GA_Diff"][0] == audits.Cell("+75.0", "+68 to +82", True, "leaks 3")
    assert dict(grid.rows)["NPO"][1] is None


def test_runs_without_a_difference_count_their_verdicts() -> None:
    collapsed = {**probed(0.0, 0.0, verdict="collapsed"), "ways": None}
    levels = [made(seed, {"mmunlearner": cell(0.25, {"sampling": collapsed})}) for seed in range(2)]
    experiment = rows.Experiment(
        name="audit", title="Tried", question="?", rows=ROWS[:1], compared="mmunlearner", answers=False, audit=True
    )
    said = assemble(experiment, levels)["audit"]["llava"]["rows"]["mmunlearner"]["sampling"]
    assert said["verdicts"] == {"collapsed": 2}
    assert said["difference"] is None


def test_results_are_what_their_schema_says(results: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/experiment.json").read_text())
    Draft202012Validator(schema).validate(json.loads(json.dumps(results)))
    broken = copy.deepcopy(results)
    broken["audit"]["llava"]["rows"]["npo"]["relearning"]["leak"] = 2.0
    assert not Draft202012Validator(schema).is_valid(broken)


def test_relearning_stands_there_by_its_strength() -> None:
    def curves(*accuracy: float, steps: tuple[int, ...] = (0, 6), attack: str = "full") -> dict[str, Any]:
        return {attack: {"steps": list(steps), "accuracy": list(accuracy)}}

    gold = {**curves(0.2, 0.4), **curves(0.2, 0.2, attack="LoRA")}
    pairs = [
        [{**curves(0.3, 0.8), **curves(0.1, 0.2, attack="LoRA")}, gold],
        [curves(0.3, 0.6), gold],
        [curves(0.3, 0.6, steps=(0, 9)), gold],  # of another plan
        [None, gold],
    ]
    levels = []
    for seed, pair in enumerate(pairs):
        probes = {"relearning": {**probed(0.25, 0.25), "curves": pair}}
        levels.append(made(seed, {row.key: cell(0.25, probes) for row in ROWS}))
    results = assemble(EXPERIMENT, levels)
    said = results["audit"]["llava"]["rows"]["npo"]["relearning"]["strengths"]
    assert said["steps"] == [0, 6]
    assert {name: each["runs"] for name, each in said["attacks"].items()} == {"full": 2, "LoRA": 1}
    # of the first run the mean of (0.1, 0.4) and (-0.1, 0)
    assert said["above"][0] == {"mean": pytest.approx(0.05), "low": pytest.approx(0), "high": pytest.approx(0.1)}
    assert said["above"][1] == dict.fromkeys(("mean", "low", "high"), pytest.approx(0.2))
    table = next(each for each in tables(results) if each.title == "llava: relearning by strength")
    assert table.header == ("", "0 steps", "6 steps", "LoRA, 6 steps", "full, 6 steps")
    assert table.rows[0] == (
        "MMUnlearner", "+5.0 (0 to 10)", "+20.0 (20 to 20)", "+0.0 (0 to 0)", "+30.0 (20 to 40)",
    )  # fmt: skip
    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/experiment.json").read_text())
    Draft202012Validator(schema).validate(json.loads(json.dumps(results)))
