"""From made-up levels to results and tables."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from mmsurgery.artifacts.mask import pack
from mmsurgery.errors import UsageError
from mmsurgery.experiments import catalogue, paper, rows, tuning
from mmsurgery.experiments.cases import chosen_cases
from mmsurgery.experiments.collapse import collapsed
from mmsurgery.experiments.level_runs import Said, target_of
from mmsurgery.experiments.results import assemble
from mmsurgery.experiments.tables import glance, tables
from mmsurgery.experiments.texts import curves_csv, to_markdown
from mmsurgery.provenance import check_seal
from mmsurgery.settings import RecipeSettings

PEOPLE = {"forget_vqa": [f"f{i // 4}" for i in range(40)], "retain_qa": [f"r{i // 4}" for i in range(80)]}
GA_DIFF = paper.TABLE1.row("ga_diff")
EXPERIMENT = rows.Experiment(
    name="tried", title="Tried", question="?", rows=(paper.MMUNLEARNER, GA_DIFF), compared="mmunlearner"
)


def markdown(results: dict[str, Any]) -> str:
    return to_markdown(tables(results), results["title"])


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
        "learning_rate": 3e-4,
        "remarks": {},
        "answers": None,
    }


def made(seed: int, *, unlearning: int = 0, forget: int = 10, **cells: Any) -> dict[str, Any]:
    start = {
        "vanilla": {"model_sha256": "aa" * 32, "correct": scores(1, 1), "remarks": {}, "answers": None},
        "gold": {"model_sha256": "bb" * 32, "correct": scores(0.45, 1), "remarks": {}, "answers": None},
    }
    level = {"backbone": "llava", "seed": seed, "draw": seed, "forget": forget, "folder": f"levels/{seed}-{forget}"}
    return {
        "level": level,
        "unlearning": unlearning,
        "texts": None,
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
        "n": 120,
    }
    matched = summary["ga_diff"]["matched"]
    # from 1 to 0.25 in 8 steps: 0.5 after two thirds of them, utility there 1 - 0.75 * 2/3
    assert matched["step"] == pytest.approx(16 / 3)
    assert matched["columns"]["utility"]["mean"] == pytest.approx(0.5)
    assert (matched["reached"], matched["levels"]) == (3, 3)
    assert summary["gold"]["matched"] is None


def test_results_follow_their_schema(results: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/experiment.json").read_text())
    validator = Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(results)] == []
    for break_ in (
        lambda r: r.update(more=1),
        lambda r: r["cells"][0].update(failed="both"),
        lambda r: r["summary"]["llava"]["gold"]["fixed"]["utility"].update(mean=1.5),
        lambda r: r.pop("claims"),
    ):
        broken = copy.deepcopy(results)
        break_(broken)
        assert not validator.is_valid(broken)


def test_pairs(results: dict[str, Any]) -> None:
    pairs = {(p["comparison"], p["quantity"]): p for p in results["paired"]}
    assert set(pairs) == {("fixed", "utility"), ("fixed", "forget_vqa"), ("matched", "utility")}
    utility = pairs["fixed", "utility"]
    assert utility["difference"] == pytest.approx(0.75)
    assert utility["resolved"]
    assert (utility["same_sign"], utility["levels"], utility["n"]) == (3, 3, 240)
    # three people a level differ, all in one sense: 2 of 2^9 sign flips are as extreme
    assert pairs["fixed", "forget_vqa"]["p_value"] == pytest.approx(2 / 2**9, abs=0.002)


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
    assert fixed.header == ("", "Forget VQA", "Retain QA", "Utility", "verdict", "learning rate", "samples seen")
    assert [row[0] for row in fixed.rows] == ["vanilla", "gold", "MMUnlearner", "GA_Diff (at chance in 3)"]
    assert fixed.rows[2][1].startswith("50.0 (")
    assert fixed.rows[2][-3:] == ("-", "0.0003", "32 + 64 (1:2)")
    assert fixed.rows[0][-3:] == ("-", "-", "-")
    assert fixed.rows[3][-3] == "+75.0, p < 0.001"
    assert [row[0] for row in matched.rows] == ["vanilla", "gold", "MMUnlearner", "GA_Diff"]
    assert matched.rows[0][1:] == ("-", "-", fixed.rows[0][2], fixed.rows[0][3], "-", "-")
    assert matched.rows[3][1:3] == ("3 of 3", "5")
    assert differences.rows[0][0] == "MMUnlearner minus GA_Diff, fixed budget"
    assert differences.rows[0][1].startswith("+75.0 (")
    assert differences.rows[0][1].endswith(", p < 0.001")


def test_what_fits_a_terminal(results: dict[str, Any]) -> None:
    (table,) = glance(results)
    rows_ = {row[0]: row[1:] for row in table.rows}
    assert rows_["GA_Diff (at chance in 3, fixed budget)"][2:] == (
        "+75.0, p < 0.001",
        "50.0 (43-58)",
        "+50.0, p < 0.001",
        "32 + 64 (1:2), 0.0003",
    )
    assert rows_["gold"][3:] == ("-", "-", "-")
    summary = results["summary"]["llava"]["ga_diff"]["matched"]
    summary["reached"] = 2
    assert (
        dict(zip([row[0] for row in table.rows], glance(results)[0].rows, strict=True))[
            "GA_Diff (at chance in 3, fixed budget)"
        ][4]
        == "50.0 (43-58), 2 of 3"
    )


def test_the_same_remark_is_said_once() -> None:
    few = {"remarks": {"retain_qa": ["few people"], "forget_vqa": ["few people"]}}
    cells = {"mmunlearner": cell((1, 1), (0.5, 1)) | few, "ga_diff": cell((1, 1), (0.25, 0.25)) | few}
    text = markdown(assemble(EXPERIMENT, [made(seed, **cells) for seed in range(3)]))
    assert text.count("few people") == 1
    said = "MMUnlearner, seed 0; GA_Diff, seed 0; MMUnlearner, seed 1; GA_Diff, seed 1 and 2 more runs, Retain QA"
    assert f"{said}, Forget VQA: few people." in text


def test_curves_as_csv(results: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO(curves_csv(results))))
    assert len(lines) == 3 * 2 * 2 * 3  # levels, rows, points, quantities
    point = next(
        x for x in lines if (x["row"], x["seed"], x["step"], x["quantity"]) == ("ga_diff", "1", "8", "utility")
    )
    assert float(point["value"]) == 0.25


def test_table_cells_do_not_break_markdown(results: dict[str, Any]) -> None:
    rows_ = [{**row, "label": "a|b"} for row in results["rows"]]
    assert "a\\|b" in markdown({**results, "rows": rows_})


def test_target() -> None:
    asked = {"forget_vqa": {"people": list("ab"), "chance": 0.5}}
    assert target_of({}, asked, [0, 1]) == pytest.approx(0.55)
    start = {"gold": {"correct": {"forget_vqa": [True, False, False, False]}}}
    assert target_of(start, asked, [0, 1, 2, 3]) == pytest.approx(0.30)
    # of some people it is what gold is on these
    assert target_of(start, asked, [0, 1]) == pytest.approx(0.55)
    assert target_of({"gold": {"correct": {"forget_vqa": [True]}}}, asked, [0]) == 1


def test_names_of_rows() -> None:
    keys = [row.key for row in paper.CONTROLS.rows]
    assert len(set(keys)) == len(keys)
    recipe = {"epochs": 2}
    by_name = {row.model_name(recipe) for row in paper.CONTROLS.rows}
    assert len(by_name) == len(keys)
    shared = {row.model_name(recipe) for row in paper.TABLE1.rows} & by_name
    assert shared == {paper.MMUNLEARNER.model_name(recipe), GA_DIFF.model_name(recipe)}
    assert paper.MMUNLEARNER.model_name({"epochs": 4}) not in by_name
    assert paper.TABLE1.needs_reference
    assert not paper.CONTROLS.needs_reference
    for name, step in (
        ("tabel1", "did you mean 'table1'"),
        ("contols", "did you mean 'controls'"),
        ("table3", "mmsurgery experiment cases"),
        ("table6", "mmsurgery experiment cases"),
        ("table9", "known: ablations"),
        ("nonsense", "known: ablations"),
    ):
        with pytest.raises(UsageError) as caught:
            catalogue.find(name)
        assert str(caught.value.next_step).startswith(step)


def test_names_of_models_stay() -> None:
    """Grids that ran for hours find their models under these names, whatever settings a recipe has got since."""
    recipe = dataclasses.asdict(RecipeSettings(learning_rate=3e-4))
    names = ["ga-c62d741a", "ga_diff-0c6acb62", "kl_min-7da1a5bb", "npo-6470059d", "mmunlearner-6601db97"]
    assert [row.model_name(recipe) for row in paper.TABLE1.rows] == names
    assert paper.TABLE1.rows[0].model_name({**recipe, "precision": "bf16"}) != names[0]


def test_runs_of_one_level_are_one_set_of_items() -> None:
    levels = [
        made(0, unlearning=run, mmunlearner=cell((1, 1), (0.5, 1)), ga_diff=cell((1, 1), (0.25, 0.25)))
        for run in (0, 1000)
    ]
    found = assemble(EXPERIMENT, levels)
    (level,) = found["levels"]
    assert level["unlearning"] == [0, 1000]
    assert [(c["unlearning"], c["row"]) for c in found["cells"]] == [
        (0, "mmunlearner"),
        (0, "ga_diff"),
        (1000, "mmunlearner"),
        (1000, "ga_diff"),
    ]
    summary = found["summary"]["llava"]["ga_diff"]
    assert summary["fixed"]["forget_vqa"]["n"] == 40
    assert (summary["matched"]["reached"], summary["matched"]["levels"], summary["cells"]) == (2, 2, 2)
    assert {pair["n"] for pair in found["paired"]} == {40, 80}


def test_ratios_are_panels_of_their_own() -> None:
    experiment = dataclasses.replace(EXPERIMENT, by_ratio=True)
    cells = {"mmunlearner": cell((1, 1), (0.5, 1)), "ga_diff": cell((1, 1), (0.25, 0.25))}
    found = assemble(experiment, [made(0, forget=5, **cells), made(0, forget=15, **cells)])
    assert [panel["key"] for panel in found["panels"]] == ["llava.5", "llava.15"]
    assert set(found["summary"]) == {"llava.5", "llava.15"}
    assert any("From 5 to 15 %" in sentence for sentence in found["findings"]["llava.15"])


def test_columns_that_not_all_levels_have_are_left_out() -> None:
    cells = {"mmunlearner": cell((1, 1), (0.5, 1)), "ga_diff": cell((1, 1), (0.25, 0.25))}
    more = made(1, **cells)
    more["items"] = {**more["items"], "forget_qa": {"people": ["f0"], "chance": 0.25}}
    assert list(assemble(EXPERIMENT, [more, made(0, **cells)])["columns"]) == ["forget_vqa", "retain_qa"]


def test_families_of_comparisons() -> None:
    """Rows that vary one thing are adjusted among themselves: a third row of another group changes nothing."""
    rows_ = (paper.MMUNLEARNER, GA_DIFF, dataclasses.replace(GA_DIFF, key="other", group="other"))
    cells = {"mmunlearner": cell((1, 1), (0.5, 1)), "ga_diff": cell((1, 1), (0.25, 0.9))}
    levels = [made(seed, **cells, other=cells["ga_diff"]) for seed in range(2)]
    alone = assemble(EXPERIMENT, levels)["paired"]
    beside = assemble(dataclasses.replace(EXPERIMENT, rows=rows_), levels)["paired"]
    assert [pair["p_adjusted"] for pair in alone] == [p["p_adjusted"] for p in beside if p["second"] == "ga_diff"]
    one_family = assemble(
        dataclasses.replace(EXPERIMENT, rows=(*rows_[:2], dataclasses.replace(rows_[2], group=None))), levels
    )["paired"]
    assert [pair["p_adjusted"] for pair in alone] != [p["p_adjusted"] for p in one_family if p["second"] == "ga_diff"]


def test_some_people_judge() -> None:
    levels = [made(0, mmunlearner=cell((1, 1), (0.5, 1)), ga_diff=cell((1, 1), (0.25, 0.25)))]
    found = assemble(EXPERIMENT, levels, judged=lambda person: person in ("f0", "r0", "r19"))
    assert found["levels"][0]["n"] == {"forget_vqa": 4, "retain_qa": 8}
    # those of `ga_diff` that are right lie among the first people
    assert found["summary"]["llava"]["ga_diff"]["fixed"]["forget_vqa"]["mean"] == 1
    assert found["summary"]["llava"]["ga_diff"]["fixed"]["utility"]["mean"] == 0.5
    curve = next(c for c in found["cells"] if c["row"] == "ga_diff")["curve"]
    assert [point["columns"]["retain_qa"] for point in curve] == [1, 0.5]


def test_answers_of_those_who_are_judged() -> None:
    said = [Said("gibberish" if person == "r1" else "correct", False, person == "r1") for person in PEOPLE["retain_qa"]]
    cells = {
        "mmunlearner": cell((1, 1), (0.5, 1)),
        "ga_diff": {**cell((1, 1), (0.25, 0.9)), "answers": {"retain_qa": said}},
    }
    everybody = assemble(EXPERIMENT, [made(0, **cells)])
    (counts,) = (c["outcomes"]["retain_qa"] for c in everybody["cells"] if c["outcomes"])
    assert (counts["gibberish"], counts["repeated"], counts["n"]) == (4, 4, 80)
    assert everybody["summary"]["llava"]["ga_diff"]["outcomes"]["retain_qa"]["gibberish"] == pytest.approx(0.05)
    some = assemble(EXPERIMENT, [made(0, **cells)], judged=lambda person: person in ("f0", "f9", "r0", "r1"))
    (cell_,) = (c for c in some["cells"] if c["outcomes"])
    assert (cell_["outcomes"]["retain_qa"]["gibberish"], cell_["outcomes"]["retain_qa"]["n"]) == (4, 8)
    assert cell_["collapsed"] == "Retain QA: 50.0 % of the answers are gibberish (1 of 1 columns over a limit)"
    assert cell_["severity"] == 0.5
    assert "GA_Diff (collapsed in 1)" in markdown(some)
    assert some["findings"]["llava"][-1].startswith("GA_Diff collapsed in 1 of 1 runs")


def test_collapse() -> None:
    ends = ({"retain_qa": 0.9, "forget_qa": 0.9}, {"retain_qa": 0.29, "forget_qa": 0.8})
    chances = {"retain_qa": 0.25, "forget_qa": 0.25}

    def why(*given: Any) -> str | None:
        found = collapsed(*given)
        return None if found is None else found.reason

    assert why(*ends, chances, None, None) == "Retain QA is at chance (1 of 2 columns over a limit)"
    assert collapsed(ends[0], {**ends[1], "retain_qa": 0.31}, chances, None, None) is None
    # what vanilla could not do either is no collapse
    assert collapsed({"retain_qa": 0.28, "forget_qa": 0.9}, ends[1], chances, None, None) is None
    answers = {"forget_qa": {"gibberish": 3, "n": 10}}
    few = {"forget_qa": {"gibberish": 2, "n": 10}}
    assert why(ends[0], ends[0], chances, few, answers) == (
        "Forget QA: 30.0 % of the answers are gibberish (1 of 2 columns over a limit)"
    )
    # the worst is named, not the first: a column at chance before one that is partly gibberish
    assert why(*ends, chances, few, answers) == "Retain QA is at chance (2 of 2 columns over a limit)"
    # one column is one, though it is both
    both = {"retain_qa": {"gibberish": 4, "n": 10}}
    assert why(*ends, chances, None, both) == "Retain QA is at chance (1 of 2 columns over a limit)"
    more = {**answers, **both}
    assert why(ends[0], ends[0], chances, few, more) == (
        "Retain QA: 40.0 % of the answers are gibberish (2 of 2 columns over a limit)"
    )
    assert collapsed(ends[0], ends[0], chances, None, few) is None
    assert collapsed(ends[0], ends[0], chances, answers, answers) is None


def test_findings(results: dict[str, Any]) -> None:
    matched, fixed, *rest = results["findings"]["llava"]
    assert matched == "At matched forgetting, points of utility: MMUnlearner keeps more than GA_Diff (+50.0)."
    assert fixed.startswith("At a fixed budget, points of utility: MMUnlearner keeps more than GA_Diff (+75.0")
    said = "GA_Diff is at chance in 3 of 3 runs at the fixed budget: in the worst Retain QA is at chance"
    assert rest == [f"{said} (1 of 1 columns over a limit)."]


def test_of_collapsed_runs_the_worst_is_named() -> None:
    def answered(wrong: int) -> dict[str, Any]:
        said = [Said("gibberish" if place < wrong else "correct", False, False) for place in range(80)]
        return {**cell((1, 1), (0.25, 0.9)), "answers": {"retain_qa": said}}

    levels = [made(s, mmunlearner=cell((1, 1), (0.5, 1)), ga_diff=answered(n)) for s, n in enumerate((20, 60, 40))]
    said = assemble(EXPERIMENT, levels)["findings"]["llava"][-1]
    assert "collapsed in 3 of 3 runs at the fixed budget: in the worst Retain QA: 75.0 %" in said


def test_few_people_resolve_nothing() -> None:
    """Two people who all differ in one sense have p 0.5, whatever they answer."""
    cells = {"mmunlearner": cell((1, 1), (0.5, 1)), "ga_diff": cell((1, 1), (0.25, 0.25))}
    some = assemble(EXPERIMENT, [made(0, **cells)], judged=lambda person: person in ("f5", "f6", "r0", "r1", "r9"))
    pair = next(p for p in some["paired"] if (p["comparison"], p["quantity"]) == ("fixed", "forget_vqa"))
    assert (pair["people"], pair["rows"], pair["resolvable"], pair["resolved"]) == (2, 1, False, False)
    assert "2 people cannot resolve this: more --seeds or --draws" in markdown(some)
    pair["resolvable"] = True
    assert "not resolved at n = 8 (2 people)" in markdown(some)
    assert "One vanilla model: intervals and verdicts are about it alone." in glance(some)[0].notes[0]


def test_cases_are_the_hardest() -> None:
    def item(person: str, number: int, **right: bool) -> dict[str, Any]:
        answers = {
            row: {"text": "t", "outcome": "correct" if yes else "wrong", "paraphrased": False, "repeated": False}
            for row, yes in {"vanilla": True, **right}.items()
        }
        entry = {"id": f"{person}/{number}", "person": person, "question": "q", "gold": "g", "picture": True}
        return {**entry, "answers": answers}

    items = [
        item("a", 0, mmunlearner=False, ga_diff=False),  # forgotten by all, lost by all
        item("b", 0, mmunlearner=False, ga_diff=True),
        item("b", 1, mmunlearner=True, ga_diff=False),  # the same person again
        item("c", 0, mmunlearner=True, ga_diff=True),
        {**item("d", 0, mmunlearner=False, ga_diff=True, vanilla=False)},  # vanilla did not know it
        item("e", 0, mmunlearner=True, ga_diff=False),
    ]
    level = {"backbone": "llava", "seed": 0, "draw": 0, "forget": 10, "folder": "f"}
    found = chosen_cases([("llava", {"level": level, "columns": {"forget_vqa": items}})], EXPERIMENT)
    assert [entry["id"] for entry in found["entries"]] == ["b/0", "e/0"]
    three = dataclasses.replace(EXPERIMENT, rows=(*EXPERIMENT.rows, dataclasses.replace(GA_DIFF, key="ga")))
    ranked = [
        item("a", 0, mmunlearner=True, ga_diff=False, ga=False),
        item("b", 0, mmunlearner=True, ga_diff=True, ga=False),
    ]
    for column, first in (("forget_vqa", "b/0"), ("retain_vqa", "a/0")):
        texts = {"level": level, "columns": {column: ranked}}
        assert chosen_cases([("llava", texts)], three)["entries"][0]["id"] == first


def test_learning_rates_are_chosen_by_what_reached_first() -> None:
    keys = [row.key for row in tuning.candidates(EXPERIMENT, 1e-3).rows]
    assert keys[:3] == ["mmunlearner@0.0003", "mmunlearner@0.001", "mmunlearner@0.003"]
    never, early, late = cell((1, 1), (0.75, 1)), cell((1, 1), (0.25, 0.5)), cell((1, 1), (0.25, 0.8))
    cells = dict(zip(keys, (never, early, late, late, late, {"failed": "nan"}), strict=True))
    chosen = tuning.choose(EXPERIMENT, [made(1000, **cells)], 1e-3, people=None)["llava"]
    assert chosen["mmunlearner"]["learning_rate"] == 3e-3
    assert [each["reached"] for each in chosen["mmunlearner"]["tried"]] == [0, 1, 1]
    assert chosen["ga_diff"]["learning_rate"] == 1e-3  # as good as the smaller one, and the recipe's
    table = tuning.tuned(EXPERIMENT, chosen)
    assert [row.settings["learning_rate"] for row in table.rows] == [3e-3, 1e-3]


def test_people_are_split_for_tuning() -> None:
    chosen = tuning.validation_people(PEOPLE)
    assert {person[0] for person in chosen} == {"f", "r"}
    assert (len([p for p in chosen if p[0] == "f"]), len([p for p in chosen if p[0] == "r"])) == (3, 6)
    assert chosen == tuning.validation_people(PEOPLE)
    with pytest.raises(UsageError, match="forget_vqa asks about 1 people"):
        tuning.validation_people({**PEOPLE, "forget_vqa": ["f0", "f0"]})


def test_cases_say_how_common_each_answer_is(results: dict[str, Any]) -> None:
    answers = [
        {"row": row, "text": "t", "outcome": "correct", "paraphrased": False, "repeated": False}
        for row in ("vanilla", "ga_diff")
    ]
    asked = {"panel": "llava", "column": "retain_qa", "person": "r0", "question": "q", "gold": "g", "answers": answers}
    results["cases"] = {"rule": "A rule.", "entries": [asked]}
    results["summary"]["llava"]["ga_diff"]["outcomes"] = {"retain_qa": {"correct": 0.07}}
    (table,) = tables(results)
    assert table.rows == (
        ("Retain QA, r0: q", "right answer", "g", "", ""),
        ("", "vanilla", "t", "correct", "-"),
        ("", "GA_Diff", "t", "correct", "7 %"),
    )
    assert "at the fixed budget" in table.notes[0]
