"""The tables and numbers of an experiment as files: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmsurgery.errors import printable
from mmsurgery.experiments import latex
from mmsurgery.experiments.text_table import TextTable

NUMBERS = (
    "panel",
    "backbone",
    "forget",
    "row",
    "label",
    "comparison",
    "quantity",
    "mean",
    "low",
    "high",
    "levels",
    "n",
    "unit",
)
"""Header of `numbers_csv`."""
CURVES = ("panel", "backbone", "seed", "draw", "forget", "unlearning", "row", "step", "quantity", "value", "unit")
"""Header of `curves_csv`."""
PAIRED = (
    "panel",
    "backbone",
    "comparison",
    "quantity",
    "first",
    "second",
    "difference",
    "low",
    "high",
    "p_value",
    "p_adjusted",
    "rows",
    "resolved",
    "levels",
    "people",
    "n",
    "unit",
)
"""Header of `paired_csv`."""
DEVIATIONS = ("panel", "row", "n", "models", "layer", "component", "weights", "top_share", "relative_change")
"""Header of `deviations_csv`."""
UNIT = "0-1"
"""What accuracies and their differences are counted in here; the tables print percent."""

_FORMULA = frozenset("=+-@\t\r\n＝＋－＠")
_SIGNED = re.compile(r"[+-]\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?P<rest>[ ,%].*)?")
_ACTIVE = re.compile(r"[|!@&{}\[\]'\"`$;:\\/*^]|[A-Za-z_.]\s*\(")


def to_markdown(tables: Iterable[TextTable], title: str) -> str:
    """The tables as GitHub Markdown: each a section of its title, its notes below it."""
    blocks = [f"# {_inline(title)}"]
    for table in tables:
        lines = [f"## {_inline(table.title)}", "", *_markdown_rows(table)]
        blocks += ["\n".join(lines), *(_inline(note) for note in table.notes)]
    return "\n\n".join(blocks) + "\n"


def _markdown_rows(table: TextTable) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(_inline(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(["---", *["---:"] * (len(table.header) - 1)]) + "|"
    return [line(table.header), rule, *(line(row) for row in table.rows)]


def _inline(text: str) -> str:
    """Text that stays on its line and opens no HTML tag."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", printable(text))


def to_latex(tables: Iterable[TextTable], title: str, name: str) -> str:
    """The tables as LaTeX to be read into a paper with `\\input`; they need the packages booktabs and graphicx.

    One `table` environment each, captioned by the experiment's title and its own, labelled `tab:NAME-1` and so on,
    with its notes below; a table wider than the text is scaled down to it. Builds with pdflatex, XeLaTeX and
    LuaLaTeX; pdflatex shows a letter that it has no font for as its code point.
    """
    head = f"% {printable(title)}\n% \\usepackage{{booktabs,graphicx}}\n"
    made = (
        latex.table(f"{title}. {each.title}", f"tab:{name}-{number}", each.header, each.rows, each.notes)
        for number, each in enumerate(tables, 1)
    )
    return "\n".join([head, *made])


def to_csv(tables: Iterable[TextTable]) -> str:
    """The tables as one CSV file (RFC 4180), a line per cell: table, row, column, text.

    A line per cell because the tables have different columns. Notes are lines without a row, in the column
    `note`. Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    lines: list[Sequence[object]] = []
    for table in tables:
        lines += [
            (table.title, row[0], column, text)
            for row in table.rows
            for column, text in zip(table.header[1:], row[1:], strict=True)
        ]
        lines += [(table.title, "", "note", note) for note in table.notes]
    return _csv(("table", "row", "column", "text"), lines)


def numbers_csv(results: Mapping[str, Any]) -> str:
    """Every mean of an experiment's results as CSV (RFC 4180), see `NUMBERS`; for those who plot themselves.

    One line per panel, row (`vanilla` and `gold` too), comparison (`fixed`, `matched`) and quantity (a column or
    `utility`). `mean` and its 95 % interval from `low` to `high` are accuracies in 0-1 in full precision; `forget`
    is in percent of the people.
    """
    labels = {row["key"]: row["label"] for row in results["rows"]}
    lines: list[Sequence[object]] = []
    for panel in results["panels"]:
        where = (panel["key"], panel["backbone"], panel["forget"])
        for row, entry in results["summary"][panel["key"]].items():
            comparisons = {"fixed": entry["fixed"], "matched": (entry["matched"] or {}).get("columns", {})}
            for comparison, quantities in comparisons.items():
                for quantity, cell in quantities.items():
                    numbers = (cell["mean"], *cell["ci95"], cell["levels"], cell["n"], UNIT)
                    lines.append((*where, row, labels.get(row, row), comparison, quantity, *numbers))
    return _csv(NUMBERS, lines)


def curves_csv(results: Mapping[str, Any]) -> str:
    """Every point of every run along the way as plain CSV: one line per run, step and quantity, accuracy 0-1."""
    lines = (
        [*(cell[key] for key in CURVES[:7]), point["step"], quantity, value, UNIT]
        for cell in results["cells"]
        for point in cell.get("curve", ())
        for quantity, value in {**point["columns"], "utility": point["utility"]}.items()
    )
    return _csv(CURVES, lines)


def paired_csv(results: Mapping[str, Any]) -> str:
    """Every paired difference as CSV (RFC 4180), see `PAIRED`: `first` minus `second`, its 95 % interval from `low` to
    `high`, p before and after adjustment for the `rows` compared in the column, and on how much it rests."""
    lines = [
        [
            *(pair[key] for key in PAIRED[:7]),
            *pair["ci95"],
            *(pair.get(key, "") for key in PAIRED[9:12]),
            str(pair["resolved"]).lower(),
            *(pair[key] for key in PAIRED[13:16]),
            UNIT,
        ]
        for pair in results["paired"]
    ]
    return _csv(PAIRED, lines)


def deviations_csv(results: Mapping[str, Any]) -> str:
    """Where weights moved, a line per panel, row and cell that exists, see `DEVIATIONS`: `top_share` of its `weights`
    are among the n that moved furthest (0-1, mean over models), `relative_change` is the norm of the change against
    that of the weights, empty where there is none."""
    lines: list[Sequence[object]] = []
    for panel, rows in results.get("deviations", {}).items():
        for row, entry in rows.items():
            for place, layer in enumerate(entry["layers"]):
                for column, component in enumerate(entry["components"]):
                    if weights := entry["sizes"][place][column]:
                        share, change = (entry[kind][place][column] for kind in ("share", "relative"))
                        about = (panel, row, entry["n"], entry["models"], layer, component)
                        lines.append((*about, weights, share, "" if change is None else change))
    return _csv(DEVIATIONS, lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows([_harmless(value) if isinstance(value, str) else value for value in line] for line in lines)
    return text.getvalue()


def _harmless(text: str) -> str:
    """Text that no spreadsheet takes for a formula; a number with its sign, alone or before words, stays as it is."""
    if text.lstrip(" ")[:1] not in _FORMULA or text == "-":
        return text
    signed = _SIGNED.fullmatch(text)
    if signed and not _ACTIVE.search(signed["rest"] or ""):
        return text
    return f"'{text}"
