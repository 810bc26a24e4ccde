"""The tables of an experiment's results, as text cells: the terminal and Markdown show the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmsurgery.data.benchmark import in_order
from mmsurgery.experiments.results import FORGET
from mmsurgery.experiments.rows import FURTHER

Results = Mapping[str, Any]


@dataclass(frozen=True)
class TextTable:
    """A table ready to print."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables(results: Results) -> list[TextTable]:
    """For each backbone: the fixed budget, matched forgetting, and the differences between rows."""
    found = []
    for backbone in results["summary"]:
        found += [_fixed(results, backbone), _matched(results, backbone), _differences(results, backbone)]
    return found


def markdown(results: Results) -> str:
    """The tables as GitHub Markdown."""
    blocks = [f"# {results['title']}"]
    for table in tables(results):
        lines = [f"## {table.title}", "", *_markdown_rows(table)]
        blocks += ["\n".join(lines), *table.notes]
    return "\n\n".join(blocks) + "\n"


def _markdown_rows(table: TextTable) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(["---", *["---:"] * (len(table.header) - 1)]) + "|"
    return [line(table.header), rule, *(line(row) for row in table.rows)]


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(entry: Mapping[str, Any] | None) -> str:
    """`77.8 (70-84)`: mean and 95 % interval, in percent."""
    if entry is None:
        return "-"
    low, high = entry["ci95"]
    return f"{_share(entry['mean'])} ({100 * low:.0f}-{100 * high:.0f})"


def _labels(results: Results) -> dict[str, str]:
    return {"vanilla": "vanilla", "gold": "gold", **{row["key"]: row["label"] for row in results["rows"]}}


def _header(results: Results, columns: list[str]) -> list[str]:
    return [results["columns"][column]["label"] for column in columns]


def _of(results: Results, backbone: str, kind: str, key: str | None = None) -> list[Any]:
    entries = [entry for entry in results[kind] if entry["backbone"] == backbone]
    return entries if key is None else [entry for entry in entries if entry["row"] == key]


def _fixed(results: Results, backbone: str) -> TextTable:
    summary, columns = results["summary"][backbone], in_order(results["columns"])
    levels = _of(results, backbone, "levels")
    rows = []
    for key, label in _labels(results).items():
        if key not in summary:
            continue
        fixed = summary[key]["fixed"]
        cells = [_cell(fixed.get(column)) for column in (*columns, "utility")]
        rows.append((label, *cells, _seen(_of(results, backbone, "cells", key))))
    asked = {column: sum(level["n"][column] for level in levels) for column in columns}
    n = ", ".join(f"{results['columns'][column]['label']} {count}" for column, count in asked.items())
    notes = [
        f"Accuracy in % by option likelihood, mean of {len(levels)} vanilla models (95 % interval over models and "
        f"people). n: {n}. "
        f"Chance {_share(results['columns'][FORGET]['chance'])} for Forget VQA. "
        "Utility: mean of all columns to be kept, without Forget VQA and Perception.",
        *_remarks(results, backbone),
    ]
    header = ("", *_header(results, columns), "Utility", "samples seen")
    return TextTable(f"{backbone}: fixed budget", header, tuple(rows), tuple(notes))


def _seen(cells: list[Mapping[str, Any]]) -> str:
    """`256 + 256 (1:1)`: forget and retain samples of a run, and their ratio."""
    whole = [cell for cell in cells if "samples" in cell]
    if not whole:
        return "-"
    forget, retain = whole[0]["samples"]["forget"], whole[0]["samples"]["retain"]
    return f"{forget} + {retain} (1:{retain / forget:.2g})"


def _remarks(results: Results, backbone: str) -> list[str]:
    labels, found = _labels(results), []
    for cell in _of(results, backbone, "cells"):
        where = f"{labels[cell['row']]}, seed {cell['seed']}"
        if "failed" in cell:
            found.append(f"{where}: failed, {cell['failed']}.")
            continue
        for column, said in cell["remarks"].items():
            found += [f"{where}, {results['columns'][column]['label']}: {remark}." for remark in said]
    return found


def _matched(results: Results, backbone: str) -> TextTable:
    summary = results["summary"][backbone]
    columns = [column for column in in_order(results["columns"]) if column != FORGET]
    rows = []
    for row in results["rows"]:
        matched = summary[row["key"]]["matched"]
        step = "-" if matched["step"] is None else f"{matched['step']:.0f}"
        cells = [_cell(matched["columns"].get(column)) for column in (*columns, "utility")]
        rows.append((row["label"], f"{matched['reached']} of {matched['levels']}", step, *cells))
    levels = _of(results, backbone, "levels")
    targets = ", ".join(_share(level["target"]) for level in levels)
    source = "the gold model's" if all(level["gold"] for level in levels) else "chance's"
    note = (
        f"Each run where its Forget VQA first falls to {source} + 5 points ({targets}), interpolated between "
        f"evaluations; a run that does not get there within {FURTHER} budgets is left out of its row's means."
    )
    header = ("", "reached", "step", *_header(results, columns), "Utility")
    return TextTable(f"{backbone}: matched forgetting", header, tuple(rows), (note,))


def _differences(results: Results, backbone: str) -> TextTable:
    labels, pairs = _labels(results), _of(results, backbone, "paired")
    names = {"utility": "Utility", **{column: entry["label"] for column, entry in results["columns"].items()}}
    quantities = list(dict.fromkeys(pair["quantity"] for pair in pairs))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for pair in pairs:
        cells.setdefault((pair["comparison"], pair["first"], pair["second"]), {})[pair["quantity"]] = _difference(pair)
    at = {"fixed": "fixed budget", "matched": "matched forgetting"}
    rows = [
        (f"{labels[first]} - {labels[second]}, {at[comparison]}", *(found.get(what, "-") for what in quantities))
        for (comparison, first, second), found in cells.items()
    ]
    note = (
        "Points of accuracy, paired by item; intervals resample models and people, p by sign flips of people, "
        "adjusted (Holm) for the rows compared in one column. Resolved: p below 0.05 and an interval without 0."
    )
    header = ("", *(names[what] for what in quantities))
    return TextTable(f"{backbone}: which differences are real", header, tuple(rows), (note,))


def _difference(pair: Mapping[str, Any]) -> str:
    """`+2.4 (-0.2 to +7.1), not resolved at n = 84`."""
    low, high = pair["ci95"]
    p = "p < 0.001" if pair["p_adjusted"] < 0.0005 else f"p {pair['p_adjusted']:.3f}"
    verdict = p if pair["resolved"] else f"not resolved at n = {pair['n']}"
    return f"{100 * pair['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), {verdict}"
