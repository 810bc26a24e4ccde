"""The tables of an experiment's results, as text cells: the terminal, Markdown, LaTeX and CSV show the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmsurgery.data.benchmark import in_order
from mmsurgery.experiments.audit_tables import audit_tables
from mmsurgery.experiments.collapse import GIBBERISH
from mmsurgery.experiments.findings import FORGET, fallen_in, label_of, unresolved
from mmsurgery.experiments.rows import FURTHER
from mmsurgery.experiments.text_table import TextTable

Results = Mapping[str, Any]
Panel = Mapping[str, Any]
_GIBBERISH = f"more than {100 * GIBBERISH:.0f} % of its open answers are gibberish"
_FEW = 4
"""Runs that a remark names."""
LONGEST = 80
"""Letters of an answer that a table shows."""
OUTCOME_LABELS = {
    "correct": "correct",
    "other_person": "another person's fact",
    "wrong": "wrong but fluent",
    "refusal": "refusal",
    "gibberish": "gibberish",
}


def tables(results: Results) -> list[TextTable]:
    """For each panel: the fixed budget, matched forgetting, the differences between rows, outcomes of open answers,
    learning rates tried. Of an experiment about single weights or single answers, these alone: its rows are scored in
    `table1`."""
    found: list[TextTable] = []
    for panel in results["panels"]:
        if "deviations" in results or "cases" in results:
            found += [*_deviations(results, panel), *_cases(results, panel)]
            continue
        if results["name"] == "audit":  # rows are scored in `table1` and `controls`
            found += [*audit_tables(results, panel), _matched(results, panel)]
            continue
        found += [_fixed(results, panel), _matched(results, panel), _differences(results, panel)]
        found += audit_tables(results, panel)
        found += [*_outcomes(results, panel), *_tuned(results, panel)]
    return found


def glance(results: Results) -> list[TextTable]:
    """What fits a terminal: for each panel what was forgotten and kept, in both comparisons; of an experiment about
    single weights or answers, its tables."""
    if "deviations" in results or "cases" in results:
        return tables(results)
    if results["name"] == "audit":
        return [table for panel in results["panels"] for table in audit_tables(results, panel)]
    return [_glance(results, panel) for panel in results["panels"]]


def _glance(results: Results, panel: Panel) -> TextTable:
    summary, rows = results["summary"][panel["key"]], []
    for key, label in _labels(results, panel).items():
        found, cells = summary[key], _of(results, panel, "cells", key)
        fixed, matched = found["fixed"], found["matched"]
        kept = "-"
        if matched is not None:
            reached, runs = matched["reached"], matched["levels"]
            kept = _cell(matched["columns"].get("utility")) + ("" if reached == runs else f", {reached} of {runs}")
        rows.append(
            (
                _marked_label(results, label, found, ", fixed budget"),
                _cell(fixed.get(FORGET)),
                _cell(fixed.get("utility")),
                _verdict(results, panel, "fixed", "utility", key),
                kept,
                _verdict(results, panel, "matched", "utility", key),
                "-" if _seen(cells) == "-" else f"{_seen(cells)}, {_rate(cells)}",
            )
        )
    header = ("", "Forget VQA", "Utility", "verdict", "Utility at matched", "verdict at matched", "samples, rate")
    note = (
        "In % (95 % interval) at the fixed budget, then where Forget VQA has come down to gold (or chance) + 5 points, "
        f"with their number if not all runs got there. Verdict: {label_of(results, results['compared'])} minus the "
        f"row. {_fallen_note(results)}{_alone(results, panel)}Every column stands in table.md beside the results."
    )
    return TextTable(str(panel["label"]), header, tuple(rows), (note,))


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(entry: Mapping[str, Any] | None) -> str:
    """`77.8 (70-84)`: mean and 95 % interval, in percent."""
    if entry is None:
        return "-"
    low, high = entry["ci95"]
    return f"{_share(entry['mean'])} ({100 * low:.0f}-{100 * high:.0f})"


def _labels(results: Results, panel: Panel) -> dict[str, str]:
    """The lines of a panel's tables: vanilla and gold where they are, then the rows."""
    keys = [key for key in ("vanilla", "gold") if key in results["summary"][panel["key"]]]
    return {key: label_of(results, key) for key in (*keys, *(row["key"] for row in results["rows"]))}


def _header(results: Results, columns: list[str]) -> list[str]:
    return [results["columns"][column]["label"] for column in columns]


def _of(results: Results, panel: Panel, kind: str, key: str | None = None) -> list[Any]:
    entries = [entry for entry in results[kind] if entry["panel"] == panel["key"]]
    return entries if key is None else [entry for entry in entries if entry["row"] == key]


def _fixed(results: Results, panel: Panel) -> TextTable:
    summary, columns = results["summary"][panel["key"]], in_order(results["columns"])
    levels = _of(results, panel, "levels")
    rows = []
    for key, label in _labels(results, panel).items():
        fixed, cells = summary[key]["fixed"], _of(results, panel, "cells", key)
        rows.append(
            (
                _marked_label(results, label, summary[key]),
                *(_cell(fixed.get(column)) for column in (*columns, "utility")),
                _verdict(results, panel, "fixed", "utility", key),
                _rate(cells),
                _seen(cells),
            )
        )
    asked = {column: sum(level["n"][column] for level in levels) for column in columns}
    n = ", ".join(f"{results['columns'][column]['label']} {count}" for column, count in asked.items())
    vanillas = len({level["seed"] for level in levels})
    runs = sum(len(level["unlearning"]) for level in levels)
    over = (
        f"mean of {vanillas} vanilla models (95 % interval over models, people and items)"
        if vanillas > 1
        else "of one vanilla model, about which alone intervals and verdicts are (95 %, over people and items)"
    )
    notes = [
        f"Accuracy in % by option likelihood, {over}, {runs} {'run' if runs == 1 else 'runs'} a row. n: {n}. "
        f"Chance {_share(results['columns'][FORGET]['chance'])} for Forget VQA. "
        "Utility: mean of all columns to be kept, without Forget VQA and Perception. "
        f"Verdict: {label_of(results, results['compared'])} minus the row, in points of utility, p adjusted (Holm). "
        f"{_fallen_note(results)}".rstrip(),
        *_remarks(results, panel),
    ]
    header = ("", *_header(results, columns), "Utility", "verdict", "learning rate", "samples seen")
    return TextTable(f"{panel['label']}: fixed budget", header, tuple(rows), tuple(notes))


def _marked_label(results: Results, label: str, found: Mapping[str, Any], where: str = "") -> str:
    return f"{label} ({fallen_in(results)} in {found['collapsed']}{where})" if found["collapsed"] else label


def _fallen_note(results: Results) -> str:
    """What the mark behind a row's name says, in the words of its experiment."""
    word = fallen_in(results)
    said = (
        f"{word.capitalize()} in N: in N runs, at the fixed budget, a column that must be kept is within 5 points of "
        "chance where vanilla was not"
    )
    return f"{said} (open answers were not asked for). " if word == "at chance" else f"{said}, or {_GIBBERISH}. "


def _alone(results: Results, panel: Panel) -> str:
    one = len({level["seed"] for level in _of(results, panel, "levels")}) == 1
    return "One vanilla model: intervals and verdicts are about it alone. " if one else ""


def _rate(cells: list[Mapping[str, Any]]) -> str:
    rates = sorted({cell["learning_rate"] for cell in cells if "learning_rate" in cell})
    return " ".join(f"{rate:g}" for rate in rates) or "-"


def _seen(cells: list[Mapping[str, Any]]) -> str:
    """`256 + 256 (1:1)`: forget and retain samples of a run, mean over runs, and their ratio; then others."""
    seen = [cell["samples"] for cell in cells if "samples" in cell]
    if not seen:
        return "-"
    forget, retain = (sum(samples[kind] for samples in seen) / len(seen) for kind in ("forget", "retain"))
    said = f"{forget:.0f} + {retain:.0f} (1:{retain / forget:.2g})" if forget else "0 + 0"
    others = sum(sum(samples.values()) for samples in seen) / len(seen) - forget - retain
    return f"{said} + {others:.0f} others" if others >= 1 else said


def _until(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A run's samples until it was at matched forgetting."""
    share = cell["matched"]["step"] / cell["steps"] if cell["steps"] else 0.0
    return {"samples": {kind: share * count for kind, count in cell["samples"].items()}}


def _remarks(results: Results, panel: Panel) -> Iterator[str]:
    """What was said of single runs, the same once for all of which it was said."""
    found: dict[str, dict[str, list[str]]] = {}
    for cell in _of(results, panel, "cells"):
        run = f"{label_of(results, cell['row'])}, seed {cell['seed']}"
        if "failed" in cell:
            found.setdefault(f"failed, {cell['failed']}", {}).setdefault(run, [])
        for column, said in cell.get("remarks", {}).items():
            for remark in said:
                found.setdefault(remark, {}).setdefault(run, []).append(results["columns"][column]["label"])
    for remark, runs in found.items():
        columns = list(dict.fromkeys(column for each in runs.values() for column in each))
        few = "; ".join([*runs][:_FEW]) + (f" and {len(runs) - _FEW} more runs" if len(runs) > _FEW else "")
        yield f"{few}{', ' if columns else ''}{', '.join(columns)}: {remark}."


def _matched(results: Results, panel: Panel) -> TextTable:
    summary = results["summary"][panel["key"]]
    columns = [column for column in in_order(results["columns"]) if column != FORGET]
    anchors = [(key, label) for key, label in _labels(results, panel).items() if summary[key]["matched"] is None]
    rows = [
        (label, "-", "-", *(_cell(summary[key]["fixed"].get(column)) for column in (*columns, "utility")), "-", "-")
        for key, label in anchors
    ]
    for row in results["rows"]:
        matched = summary[row["key"]]["matched"]
        step = "-" if matched["step"] is None else f"{matched['step']:.0f}"
        cells = [_cell(matched["columns"].get(column)) for column in (*columns, "utility")]
        verdict = _verdict(results, panel, "matched", "utility", row["key"])
        seen = _seen([_until(cell) for cell in _of(results, panel, "cells", row["key"]) if cell.get("matched")])
        rows.append((row["label"], f"{matched['reached']} of {matched['levels']}", step, *cells, verdict, seen))
    levels = _of(results, panel, "levels")
    targets = ", ".join(_share(level["target"]) for level in levels)
    source = "the gold model's" if all(level["gold"] for level in levels) else "chance's"
    note = (
        f"Each run where its Forget VQA first falls to {source} + 5 points ({targets}), interpolated between "
        f"evaluations; a run that does not get there within {FURTHER} budgets is left out of its row's means. "
        f"{' and '.join(label for _, label in anchors)}: as they are, unlearning nothing."
    )
    header = ("", "reached", "step", *_header(results, columns), "Utility", "verdict", "samples seen")
    return TextTable(f"{panel['label']}: matched forgetting", header, tuple(rows), (note,))


def _verdict(results: Results, panel: Panel, comparison: str, what: str, row: str) -> str:
    """`+4.8, p 0.001`, `not resolved at n = 3,360 (30 people)`, or `-` for a row that is not compared."""
    for pair in _of(results, panel, "paired"):
        if (pair["comparison"], pair["quantity"], pair["second"]) == (comparison, what, row):
            said = f"{100 * pair['difference']:+.1f}, {_p(pair)}"
            return said if pair["resolved"] else unresolved(pair)
    return "-"


def _p(pair: Mapping[str, Any]) -> str:
    return "p < 0.001" if pair["p_adjusted"] < 0.0005 else f"p {pair['p_adjusted']:.3f}"


def _differences(results: Results, panel: Panel) -> TextTable:
    pairs = _of(results, panel, "paired")
    names = {"utility": "Utility", **{column: entry["label"] for column, entry in results["columns"].items()}}
    quantities = list(dict.fromkeys(pair["quantity"] for pair in pairs))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for pair in pairs:
        cells.setdefault((pair["comparison"], pair["first"], pair["second"]), {})[pair["quantity"]] = _difference(pair)
    at = {"fixed": "fixed budget", "matched": "matched forgetting"}
    rows = [
        (
            f"{label_of(results, first)} minus {label_of(results, second)}, {at[comparison]}",
            *(found.get(what, "-") for what in quantities),
        )
        for (comparison, first, second), found in cells.items()
    ]
    note = (
        "Points of accuracy, paired by run and item; intervals resample models, people and items, p by sign flips of "
        "people, adjusted (Holm) for the rows compared in one column. Resolved: p below 0.05 and an interval without 0."
    )
    header = ("", *(names[what] for what in quantities))
    return TextTable(f"{panel['label']}: which differences are real", header, tuple(rows), (note,))


def _difference(pair: Mapping[str, Any]) -> str:
    """`+2.4 (-0.2 to +7.1), not resolved at n = 84 (21 people)`."""
    low, high = pair["ci95"]
    verdict = _p(pair) if pair["resolved"] else unresolved(pair)
    return f"{100 * pair['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), {verdict}"


def _outcomes(results: Results, panel: Panel) -> Iterator[TextTable]:
    """What the answers are in the models' own words: share of each outcome."""
    summary = results["summary"][panel["key"]]
    shown = {key: summary[key]["outcomes"] for key in _labels(results, panel) if summary[key]["outcomes"]}
    if not shown:
        return
    columns = in_order(next(iter(shown.values())))
    rows = [
        (label_of(results, key), *(" / ".join(f"{100 * found[c][o]:.0f}" for o in OUTCOME_LABELS) for c in columns))
        for key, found in shown.items()
    ]
    note = (
        f"Each item asked without its options, answered in the model's own words, at the fixed budget. In % of the "
        f"answers: {' / '.join(OUTCOME_LABELS.values())}."
    )
    yield TextTable(f"{panel['label']}: what the answers are", ("", *_header(results, columns)), tuple(rows), (note,))


def _deviations(results: Results, panel: Panel) -> Iterator[TextTable]:
    """Where the weights that moved furthest lie, by module group."""
    found = results.get("deviations", {}).get(panel["key"])
    if not found:
        return
    groups = list(dict.fromkeys(group for entry in found.values() for group in entry["groups"]))
    rows = [
        (
            label_of(results, key),
            f"{entry['n']:,}",
            _share(entry["changed"]),
            *(f"{_share(entry['groups'][g]['top'])} ({_share(entry['groups'][g]['changed'])})" for g in groups),
        )
        for key, entry in found.items()
    ]
    note = (
        "The n weights with the largest |after - before|, n as many as the mask selects (mean over models): how many "
        "of them lie in each module group (and how many of its weights changed at all), in %. `changed`: share of all "
        "weights."
    )
    header = ("", "n", "changed", *groups)
    yield TextTable(f"{panel['label']}: where weights moved furthest", header, tuple(rows), (note,))


def _cases(results: Results, panel: Panel) -> Iterator[TextTable]:
    if "cases" not in results:
        return
    rows = []
    for case in results["cases"]["entries"]:
        if case["panel"] != panel["key"]:
            continue
        asked = f"{results['columns'][case['column']]['label']}, {case['person']}: {case['question']}"
        rows.append((asked, "right answer", case["gold"], "", ""))
        for answer in case["answers"]:
            said = results["summary"][panel["key"]][answer["row"]]["outcomes"]
            share = f"{100 * said[case['column']]['correct']:.0f} %" if said and case["column"] in said else "-"
            rows.append(("", label_of(results, answer["row"]), _cut(answer["text"]), _marked(answer), share))
    note = (
        f"{results['cases']['rule']} Rows answer at the fixed budget. Last column: how many of all open answers of the "
        "row in this column are correct, mean over runs."
    )
    header = ("question", "row", "answer", "is", "correct in the column")
    yield TextTable(f"{panel['label']}: cases", header, tuple(rows), (note,))


def _cut(text: str) -> str:
    """A model that does not stop would fill a page; the results hold all that it said."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ..."


def _marked(answer: Mapping[str, Any]) -> str:
    said = OUTCOME_LABELS[answer["outcome"]] + (", paraphrased" if answer["paraphrased"] else "")
    return said + (", repeats itself" if answer["repeated"] else "")


def _tuned(results: Results, panel: Panel) -> Iterator[TextTable]:
    found = results.get("tuned", {}).get(panel["key"])
    if not found:
        return
    rates = sorted({tried["learning_rate"] for entry in found.values() for tried in entry["tried"]})
    rows = []
    for key, entry in found.items():
        tried = {each["learning_rate"]: each for each in entry["tried"]}
        cells = [
            "-"
            if rate not in tried or tried[rate]["utility"] is None
            else f"{_share(tried[rate]['utility'])} ({tried[rate]['reached']} of {tried[rate]['levels']})"
            for rate in rates
        ]
        rows.append((label_of(results, key), f"{entry['learning_rate']:g}", *cells))
    header = ("", "chosen", *(f"{rate:g}" for rate in rates))
    on = next(iter(found.values()))["on"]
    note = (
        f"Utility in % at matched forgetting (runs that got there) by learning rate, on {on}: none of them is in the "
        "tables above. Chosen: most runs that got there, then the highest utility."
    )
    yield TextTable(f"{panel['label']}: learning rates", header, tuple(rows), (note,))
