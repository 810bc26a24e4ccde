"""An experiment on the page: its question, its tables with verdicts, and where each number comes from."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_extras import tuned
from example_results import TABLE1, ablations, results, row
from parsed import Parsed

from mmsurgery.artifacts.files import write_json
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import seal
from mmsurgery.report import write_report
from mmsurgery.report.experiments import Experiment, Panel, read_experiment, without_repeats
from mmsurgery.workspace import Workspace

Read = Callable[[dict[str, Any]], Experiment]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Seal a record, write it, and read it as the page does."""

    def made(record: dict[str, Any]) -> Experiment:
        path = tmp_path / "results.json"
        write_json(path, seal(record))
        return read_experiment(path)

    return made


def said_in(panel: Panel, key: str, comparison: str, quantity: str) -> tuple[str, str]:
    (found,) = [row for group in panel.groups for row in group.rows if row.key == key]
    number = found.numbers[comparison][quantity]
    return number.verdict, number.at


def test_tables_say_what_is_not_resolved_and_at_what_n(full: Workspace) -> None:
    record = results()
    pairs = [p for p in record["paired"] if p["panel"] == "llava" and p["comparison"] == "matched"]
    page = write_report(full).path.read_text(encoding="utf-8")
    at = page.index('<table class="results"')
    table = Parsed(page[at : page.index("</table>", at)])
    rows = {row["label"]: row["key"] for row in record["rows"]}
    cells = re.split(r"(?<!\S)(GA|GA_Diff|KL_Min|NPO|MMUnlearner) (?=no mask|mask:)", table.text)
    said = dict(zip(cells[1::2], cells[2::2], strict=True))
    assert set(said) == set(rows)
    for label, key in rows.items():
        for pair in pairs:
            if pair["second"] != key:
                continue
            # the cell says MMUnlearner minus row, as the file does
            sign = "+" if pair["difference"] > 0 else "−"
            shown = f"{sign}{100 * abs(pair['difference']):.1f}"
            assert (shown in said[label]) == pair["resolved"], (label, said[label])
            # 3 levels of 1,120 answers
            assert ("not resolved at n = 3,360" in said[label]) or pair["resolved"]
    assert any(not pair["resolved"] for pair in pairs)
    assert "not reached – 0 of 3" in said["NPO"]


def test_a_verdict_is_of_its_pair_whichever_stands_first(read: Read) -> None:
    record = results(seeds=1, backbones=("llava",))
    (pair,) = [
        p for p in record["paired"] if (p["second"], p["comparison"], p["quantity"]) == ("ga", "fixed", "utility")
    ]
    record["paired"] = [{**pair, "difference": 0.25, "ci95": [0.2, 0.3], "resolved": True}]
    assert said_in(read(record).panels[0], "ga", "fixed", "utility") == ("+25.0", "")
    record["paired"][0] |= {"first": "ga", "second": "mmunlearner"}
    assert said_in(read(record).panels[0], "ga", "fixed", "utility") == ("−25.0", "")
    record["paired"][0] |= {"resolved": False, "n": 1890}
    assert said_in(read(record).panels[0], "ga", "fixed", "utility") == ("not resolved", "at n = 1,890 (12 people)")
    record["paired"][0] |= {"resolvable": False, "people": 6}
    assert said_in(read(record).panels[0], "ga", "fixed", "utility") == ("cannot be resolved", "with 6 people")
    record["paired"][0] |= {"first": "npo", "second": "ga"}  # neither is the compared row
    assert said_in(read(record).panels[0], "ga", "fixed", "utility") == ("", "")


@pytest.mark.parametrize("missing", ["panels", "question", "findings", "claims", "compared"])
def test_results_of_another_time_are_refused(read: Read, missing: str) -> None:
    record = results(seeds=1)
    del record[missing]
    with pytest.raises(InputRefused, match=f"lacks '{missing}'"):
        read(record)


def test_a_cell_on_no_level_is_refused(read: Read) -> None:
    record = results(seeds=2, backbones=("llava",))
    record["levels"] = record["levels"][:1]
    with pytest.raises(InputRefused, match="cells, entry 6: there is no such level"):
        read(record)


def test_every_number_of_an_experiment_is_a_link_to_its_provenance(full: Workspace) -> None:
    page = write_report(full).path.read_text(encoding="utf-8")
    section = page[page.index('<section id="experiment-1"') : page.index('<section id="scores"')]
    numbers = re.findall(r'<td class="num[^"]*" data-value="[\d.]+"[^>]*>(.*?)</td>', section)
    # 7 rows of every quantity twice over, and what the first table repeats
    assert len(numbers) > 150
    for number in numbers:
        assert number.startswith(
            ('<span class="value"><a class="from" href="#from-experiment_2d_table1">', "<a class")
        ) or re.match(r"[\d.]+$|< 0.001$", number), number
    assert 'id="from-experiment_2d_table1"' in page
    assert "<code>mmsurgery experiment table1</code>" in page


def test_every_run_has_the_command_that_shows_it(read: Read) -> None:
    record = results(seeds=2, backbones=("llava",))
    panel = read(record).panels[0]
    first = panel.runs[0]
    assert first.command == "mmsurgery -w experiments/levels/llava.0-1a2b3c4d eval ga-00000000"
    assert (first.level, first.learning_rate, first.samples) == ("seed 0, draw 0, unlearning 0", "3 × 10⁻⁴", "252 : 0")
    assert panel.runs[-1].command == "mmsurgery -w experiments/levels/llava.1-1a2b3c4d eval mmunlearner-00000001"
    assert panel.runs[-1].ratio == "1.0"
    (failed,) = [run for run in panel.runs if not run.command]
    assert failed.remarks == "failed: the loss is not finite at step 12"
    record["levels"][0]["folder"] = "a b; rm -r $HOME"
    assert shlex.split(read(record).panels[0].runs[0].command)[2] == "a b; rm -r $HOME"


def test_rows_say_rate_samples_ratio_and_what_went_wrong(read: Read) -> None:
    panel = read(results(seeds=3, backbones=("llava",))).panels[0]
    rows = {row.key: row for group in panel.groups for row in group.rows}
    assert (rows["npo"].learning_rate, rows["npo"].samples, rows["npo"].ratio) == ("1 × 10⁻⁴", "252 : 0", "0.0")
    assert (rows["ga_diff"].samples, rows["ga_diff"].ratio) == ("252 : 256", "1.0")
    assert rows["ga"].remarks == ["collapsed in 2 of 3 runs: Retain VQA at chance"]
    assert rows["kl_min"].remarks == ["failed in 1 of 3 runs: the loss is not finite at step 12"]
    assert rows["gold"].remarks == []
    charts = {series.label: series.hollow for series in panel.charts[0].series}
    assert charts == {"GA": True, "GA_Diff": False, "KL_Min": False, "NPO": False, "MMUnlearner": False}
    assert 'class="end s1 d0 hollow"' in panel.charts[0].picture


def test_without_open_answers_rows_are_at_chance_and_nothing_collapsed(read: Read) -> None:
    record = results("figure5", seeds=3, backbones=("llava",))
    for entry in record["summary"]["llava"].values():
        entry["outcomes"] = None
    for cell in record["cells"]:
        if cell.get("collapsed"):
            cell["collapsed"] = "Retain VQA is at chance (1 of 5 columns over a limit)"
    found = read(record)
    rows = {row.key: row for group in found.panels[0].groups for row in group.rows}
    assert rows["ga"].remarks == ["at chance in 2 of 3 runs: Retain VQA (1 of 5 columns over a limit)"]
    assert found.fallen == "at chance"
    assert {run.remarks.split(";")[0] for run in found.panels[0].runs if run.label == "GA"} == {
        "at chance: Retain VQA (1 of 5 columns over a limit)",
        "",
    }


def test_the_marker_is_at_the_fixed_budget_of_the_table(read: Read) -> None:
    record = results(seeds=2, backbones=("llava",))
    for cell in (cell for cell in record["cells"] if cell["row"] == "npo"):
        cell["curve"] += [{**cell["curve"][-1], "step": 68}, {**cell["curve"][-1], "step": 72}]
    (npo,) = [series for series in read(record).panels[0].charts[0].series if series.label == "NPO"]
    fixed = record["summary"]["llava"]["npo"]["fixed"]
    assert npo.end is not None
    assert (npo.end.x, npo.end.y) == (fixed["forget_vqa"]["mean"], fixed["utility"]["mean"])
    assert [len(run.beyond) for run in (npo.mean, *npo.levels)] == [2, 2, 2]
    assert len(npo.mean.within) == 17


def test_runs_that_an_earlier_experiment_shows_are_linked_to_it(read: Read) -> None:
    first, again, others = (read(results("table1", ("llava",), seeds)) for seeds in (2, 2, 3))
    own = replace(again.panels[0], findings=[*again.panels[0].findings, "its own"], claims=[])
    found = without_repeats([first, replace(again, panels=[own]), others])
    assert [each.panels[0].same for each in found][::2] == [None, None]
    same = found[1].panels[0].same
    assert same is not None
    assert (same.experiment, same.panel, same.anchor) == ("Table 1: the five methods", "llava", "part-1-1")
    assert found[1].panels[0].findings == ["its own"]
    # an experiment without open answers does not stand for one that has some
    silent = replace(first, panels=[replace(first.panels[0], outcomes=None)])
    assert without_repeats([silent, again])[1].panels[0].same is None


@pytest.mark.parametrize(
    ("evidence", "shown"), [("GA +30.2", ("holds", "holds")), ("r 0.9; no test", ("holds, no test", "open"))]
)
def test_a_verdict_without_a_test_has_no_colour(read: Read, evidence: str, shown: tuple[str, str]) -> None:
    record = results(seeds=1, backbones=("llava",))
    record["claims"]["llava"][0]["evidence"] = evidence
    claim = read(record).panels[0].claims[0]
    assert (claim.verdict, claim.mark) == shown


def test_a_collapsed_minority_is_not_drawn_hollow(read: Read) -> None:
    record = results(seeds=3, backbones=("llava",))
    record["summary"]["llava"]["ga"]["collapsed"] = 1
    assert not read(record).panels[0].charts[0].series[0].hollow


def test_settings_that_are_not_plain_are_told(read: Read) -> None:
    rows = (
        TABLE1[0],
        row("x", "X", 1.0, 0.1, scope="all", protocol="official", forget_weight=0.4, retain_batch=16),
        TABLE1[-1],
    )
    panel = read(results(seeds=1, backbones=("llava",), rows=rows)).panels[0]
    (found,) = [row for group in panel.groups for row in group.rows if row.key == "x"]
    said = "no mask; scope all; protocol official; forget weight 0.4; 16 retain samples a step"
    assert found.detail == said


def test_columns_stand_in_the_order_of_every_table(read: Read) -> None:
    record = results(seeds=1, backbones=("llava",))
    record["columns"] = {"zebra": {"label": "Zebra", "chance": None}, **record["columns"]}
    order = [key for key, _ in read(record).panels[0].quantities]
    assert order[:5] == ["forget_vqa", "utility", "forget_qa", "retain_vqa", "retain_qa"]
    assert order[5:] == ["realworld_vqa", "realworld_qa", "zebra"]


def test_groups_are_sub_headings(read: Read) -> None:
    panel = read(results("ablations", ("llava",), 1, ablations())).panels[0]
    titles = [group.title for group in panel.groups]
    assert titles[:4] == ["", "beta", "density", "forget weight"]
    assert [row.key for row in panel.groups[0].rows] == ["vanilla", "gold", "mmunlearner"]
    assert [row.key for row in panel.groups[1].rows] == ["beta-0.25", "beta-0.5", "beta-2", "beta-4", "beta-8"]
    charts = {chart.title: [series.label for series in chart.series] for chart in panel.charts}
    assert list(charts) == titles[1:]
    assert charts["scope"] == ["MMUnlearner", "both steps masked"]


def test_findings_and_claims_come_from_the_file(read: Read) -> None:
    record = results(seeds=1, backbones=("llava",))
    record["findings"]["llava"] = ["Only this."]
    panel = read(record).panels[0]
    assert panel.findings == ["Only this."]
    assert [(claim.verdict, claim.mark) for claim in panel.claims] == [
        ("holds", "holds"),
        ("does not hold", "fails"),
        ("not resolved", "open"),
    ]
    record["claims"]["llava"][0]["verdict"] = "proven"
    with pytest.raises(InputRefused, match="'proven' is no verdict"):
        read(record)


def test_rates_that_were_tried_are_listed(read: Read) -> None:
    panel = read(results(seeds=1, backbones=("llava",), tuned=tuned(["llava"]))).panels[0]
    assert panel.tuned is not None
    assert [name for _, name in panel.tuned.rates] == ["1 × 10⁻⁴", "3 × 10⁻⁴", "1 × 10⁻³"]
    first = panel.tuned.rows[0]
    assert first.tried == {1e-4: "not reached (0 of 2)", 3e-4: "91.0 % (2 of 2)", 1e-3: "73.0 % (2 of 2)"}
    assert (first.chosen, first.on) == (3e-4, "seeds 1000, 1001")


def test_a_panel_says_what_its_runs_start_from(read: Read) -> None:
    record = results(seeds=3, backbones=("llava",))
    assert read(record).panels[0].made_of == "3 vanilla models"
    for level in record["levels"]:
        level["unlearning"] = [0, 1]
    assert read(record).panels[0].made_of == "3 vanilla models, 2 unlearning seeds"
    for entry in (*record["levels"], *record["cells"]):
        entry["seed"] = 0  # three draws of one model
    assert read(record).panels[0].made_of == "1 vanilla model, 3 draws, 2 unlearning seeds"


def test_the_command_of_a_tuned_experiment(read: Read) -> None:
    assert read(results("table1-tuned", ("llava",), 1)).origin.command == "experiment table1 --tune"
    assert read(results("table1", ("llava",), 1)).origin.command == "experiment table1"


def test_many_panels_are_folded(read: Read) -> None:
    assert not read(results(seeds=1)).folded
    assert read(results("figure4", ("llava",), 1, ratios=(5, 10, 15))).folded


def test_ten_levels_of_25_rows_stay_small(empty: Workspace) -> None:
    record = results("ablations", ("llava",), 10, ablations())
    assert len(record["cells"]) == 250
    write_json(empty.path("experiments", "ablations", "results.json"), record)
    assert write_report(empty).path.stat().st_size < 1_000_000


def test_experiments_stand_in_the_papers_order(empty: Workspace) -> None:
    for name in ("ablations", "another", "figure4", "table1-tuned", "table1"):
        write_json(empty.path("experiments", name, "results.json"), results(name, ("llava",), 1))
    text = Parsed(write_report(empty).path.read_text(encoding="utf-8")).text
    assert re.findall(r"Experiment ([\w-]+) Table", text) == [
        "table1",
        "table1-tuned",
        "figure4",
        "ablations",
        "another",
    ]


def test_endless_text_is_cut(empty: Workspace) -> None:
    """Labels, sentences and reasons of 100 kB make no page of megabytes."""
    record = json.loads(json.dumps(results(seeds=1, backbones=("llava",))))
    long = "<b>" + "x" * 100_000
    plain = copy.deepcopy(record)
    record["title"] = record["question"] = record["rows"][0]["label"] = record["panels"][0]["label"] = long
    record["findings"]["llava"] = [long]
    record["claims"]["llava"][0]["evidence"] = record["cells"][0]["collapsed"] = record["cells"][1]["model"] = long
    record["cells"][0]["remarks"] = {"forget_vqa": [long]}
    record["rows"][1]["mask"] = {"rule": long}
    path = empty.path("experiments", "table1", "results.json")
    sizes = []
    for each in (plain, record):
        write_json(path, seal(each))
        result = write_report(empty)
        assert not result.damaged
        sizes.append(result.path.stat().st_size)
    assert sizes[1] < sizes[0] + 60_000
    assert "(cut, 100,003 characters)" in result.path.read_text(encoding="utf-8")
