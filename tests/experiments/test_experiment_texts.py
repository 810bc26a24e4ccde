"""Tables and numbers as files: each reads back to what it was, whatever the text holds."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.experiments.latex import escape
from mmsurgery.experiments.text_table import TextTable
from mmsurgery.experiments.texts import (
    NUMBERS,
    PAIRED,
    deviations_csv,
    numbers_csv,
    paired_csv,
    to_csv,
    to_latex,
    to_markdown,
)

HOSTILE = "[*] 100 % of $x_1^2$ & {a} \\input{/etc/passwd} #1 ~ <b> | `q` \"r\" ''s'' a--b"
FOREIGN = "Zoë Müller, Łódź, ð, 山本, 😀, β ≤ 0.5 – “x”…"
TABLE = TextTable(
    "llava: fixed budget",
    ("", "Forget VQA", "Utility"),
    (
        ("vanilla", "81.2 (76-87)", "-"),
        ("MMUnlearner minus GA_Diff, fixed budget", "-2.4 (-10.2 to +7.1), not resolved at n = 84", "+3.5"),
    ),
    ("Accuracy in %.", "A second note."),
)
FOUL = TextTable(HOSTILE, ("", HOSTILE, "c"), ((HOSTILE, "=1+1", FOREIGN), ("* x", "[1]", "a\nb")), (FOREIGN, HOSTILE))

WIDE = TextTable("wide", ("", *["Real-world VQA"] * 11), (("GA (collapsed in 1)", *["77.8 (70-84)"] * 11),))


def test_markdown() -> None:
    assert to_markdown([TABLE], "Table 1") == (
        "# Table 1\n\n"
        "## llava: fixed budget\n\n"
        "|  | Forget VQA | Utility |\n"
        "|---|---:|---:|\n"
        "| vanilla | 81.2 (76-87) | - |\n"
        "| MMUnlearner minus GA_Diff, fixed budget | -2.4 (-10.2 to +7.1), not resolved at n = 84 | +3.5 |\n\n"
        "Accuracy in %.\n\n"
        "A second note.\n"
    )


def test_markdown_rows_stay_rows_and_text_stays_text() -> None:
    lines = to_markdown([FOUL], HOSTILE).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4, 4, 4]
    assert "&lt;b>" in rows[0]
    assert "p < 0.001" in to_markdown([TextTable("t", ("", "p"), (("a", "p < 0.001"),))], "t")


def test_latex_of_a_table() -> None:
    assert to_latex([TABLE], "Table 1", "table1") == (
        "% Table 1\n"
        "% \\usepackage{booktabs,graphicx}\n"
        "\n"
        "\\begin{table}[t]\n"
        "\\centering\n"
        "\\caption{Table 1. llava: fixed budget}\\label{tab:table1-1}\\smallskip\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        "\\begin{tabular}{@{}lrr@{}}\n"
        "\\toprule\n"
        " & Forget VQA & Utility \\\\\n"
        "\\midrule\n"
        "vanilla & 81.2 (76--87) & -- \\\\\n"
        "\\addlinespace\n"
        "\\begin{tabular}[t]{@{}l@{}}MMUnlearner minus GA\\_Diff, \\\\ fixed budget\\end{tabular} & "
        "\\begin{tabular}[t]{@{}r@{}}$-$2.4 ($-$10.2 to +7.1), \\\\ not resolved at n = 84\\end{tabular} & +3.5 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}}\n"
        "\n\\smallskip\n{\\footnotesize\\raggedright Accuracy in \\%.\\par}\n"
        "\n\\smallskip\n{\\footnotesize\\raggedright A second note.\\par}\n"
        "\\end{table}\n"
    )


def test_latex_of_many_columns_stacks_what_is_in_brackets() -> None:
    text = to_latex([WIDE], "t", "x")
    assert "\\begin{tabular}[t]{@{}r@{}}77.8 \\\\ (70--84)\\end{tabular}" in text
    assert "\\begin{tabular}[t]{@{}r@{}}Real-world \\\\ VQA\\end{tabular}" in text


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("50 % & more_of #1", "50 \\% \\& more\\_of \\#1"),
        ("a\\b{c}", "a\\textbackslash{}b\\{c\\}"),
        ("~^`", "\\textasciitilde{}\\textasciicircum{}\\textasciigrave{}"),
        ("a < b > c | d", "a \\textless{} b \\textgreater{} c \\textbar{} d"),
        ("[x] *", "{[}x] {*}"),
        ("70-84", "70--84"),
        ("(-0.2 to +7.1)", "($-$0.2 to +7.1)"),
        ("- a - b", "- a -- b"),
        ("GPT-4", "GPT-4"),
        ("a--b", "a-{}-b"),
        ("''", "'{}'"),
        ("é", "é"),
        ("e\u0301", "é"),
        ("×", "$\\times$"),
        ("ą", "\\ifdefined\\Umathchar ą\\else (U+0105)\\fi{}"),
        ("a\nb", "a\\textbackslash{}nb"),
    ],
)
def test_latex_letters(text: str, latex: str) -> None:
    assert escape(text) == latex


def test_latex_is_balanced_and_nothing_foreign_is_a_command() -> None:
    text = to_latex([FOUL], HOSTILE, "foul")
    assert text.startswith("% ")
    body = "\n".join(text.splitlines()[2:])
    assert "\\input" not in body
    bare = re.sub(r"\\[%&#$_{}]|\\textbackslash", "", body)
    assert bare.count("{") == bare.count("}")
    assert bare.replace("$\\leq$", "").replace("$\\beta$", "").count("$") == 0
    assert [line.count("&") for line in bare.splitlines() if line.endswith("\\\\")] == [2, 2, 2]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs a LaTeX with booktabs and graphicx")
@pytest.mark.parametrize("encoding", ["", "\\usepackage[T1]{fontenc}"])
def test_latex_compiles(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(to_latex([TABLE, FOUL, WIDE], HOSTILE, "foul"))
    paper = f"\\documentclass{{article}}{encoding}\\usepackage{{booktabs,graphicx}}"
    (tmp_path / "paper.tex").write_text(f"{paper}\\begin{{document}}\\listoftables\\input{{table}}\\end{{document}}")
    command = ["pdflatex", "-halt-on-error", "-no-shell-escape", "-interaction=nonstopmode", "paper.tex"]
    for _ in range(2):  # the second one reads the captions back
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert ran.returncode == 0, ran.stdout[-2000:]
        assert "Overfull" not in ran.stdout


def test_csv_has_a_line_per_cell_and_note() -> None:
    text = to_csv([TABLE])
    assert text.splitlines(keepends=True)[0] == "table,row,column,text\r\n"
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [
        [TABLE.title, "vanilla", "Forget VQA", "81.2 (76-87)"],
        [TABLE.title, "vanilla", "Utility", "-"],
        [TABLE.title, TABLE.rows[1][0], "Forget VQA", TABLE.rows[1][1]],
        [TABLE.title, TABLE.rows[1][0], "Utility", "+3.5"],
        [TABLE.title, "", "note", "Accuracy in %."],
        [TABLE.title, "", "note", "A second note."],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "@SUM(A1)",
        "+cmd|' /C calc'!A0",
        "-2+3+cmd|' /C calc'!A0",
        "-2 +cmd|' /C calc'!A0",
        '-1 +HYPERLINK ("http://a","b")',
        "+1,SUM(A1)",
        "\t=1",
        " =1+1",
        "\r=1",
        "＝1+1",
        "-x",
    ],
)
def test_csv_formulas_are_only_text(text: str) -> None:
    table = TextTable(text, ("", text), ((text, text),))
    line = list(csv.reader(io.StringIO(to_csv([table]), newline="")))[1]
    assert line == [f"'{text}"] * 4


@pytest.mark.parametrize(
    "text", ["-", "-2.4", "+33", "+1e-05", "-0.2 %", "+2.4 (-0.2 to +7.1), not resolved at n = 84", "-1.0, p < 0.001"]
)
def test_csv_leaves_numbers_alone(text: str) -> None:
    table = TextTable("t", ("", "c"), (("r", text),))
    assert list(csv.reader(io.StringIO(to_csv([table]), newline="")))[1][3] == text


def results() -> dict[str, Any]:
    third = {"mean": 1 / 3, "ci95": [-0.25, 0.1 + 0.2], "levels": 5, "n": 630}
    return {
        "rows": [{"key": "ga", "label": "=GA"}],
        "panels": [{"key": "llava.5", "label": "llava, forget 5 %", "backbone": "llava", "forget": 5}],
        "summary": {
            "llava.5": {
                "vanilla": {"fixed": {"utility": third}, "matched": None},
                "ga": {
                    "fixed": {"utility": third, "forget_vqa": third},
                    "matched": {"reached": 4, "levels": 5, "step": 3.5, "columns": {"utility": {**third, "n": 504}}},
                },
            }
        },
    }


def test_numbers_keep_their_precision() -> None:
    header, *lines = csv.reader(io.StringIO(numbers_csv(results()), newline=""))
    assert tuple(header) == NUMBERS
    numbers = ["0.3333333333333333", "-0.25", "0.30000000000000004", "5"]
    where = ["llava.5", "llava", "5"]
    assert lines == [
        [*where, "vanilla", "vanilla", "fixed", "utility", *numbers, "630", "0-1"],
        [*where, "ga", "'=GA", "fixed", "utility", *numbers, "630", "0-1"],
        [*where, "ga", "'=GA", "fixed", "forget_vqa", *numbers, "630", "0-1"],
        [*where, "ga", "'=GA", "matched", "utility", *numbers, "504", "0-1"],
    ]


def test_paired_numbers() -> None:
    pair = {
        "panel": "llava",
        "backbone": "llava",
        "comparison": "fixed",
        "quantity": "forget_vqa",
        "first": "mmunlearner",
        "second": "ga",
        "difference": 0.1,
        "ci95": [-0.1, 0.3],
        "p_value": 0.02,
        "p_adjusted": 0.08,
        "rows": 4,
        "resolved": False,
        "levels": 1,
        "people": 6,
        "n": 126,
    }
    header, line = csv.reader(io.StringIO(paired_csv({"paired": [pair]}), newline=""))
    assert tuple(header) == PAIRED
    numbers = ["0.1", "-0.1", "0.3", "0.02", "0.08", "4", "false", "1", "6", "126", "0-1"]
    assert line == ["llava", "llava", "fixed", "forget_vqa", "mmunlearner", "ga", *numbers]


def test_deviations_cell_by_cell() -> None:
    entry = {
        "n": 7,
        "models": 2,
        "layers": ["lm.0", "lm.1"],
        "components": ["q", "k"],
        "sizes": [[10, 0], [20, 30]],
        "share": [[0.5, 0.0], [0.25, 0.0]],
        "relative": [[0.01, None], [None, 0.02]],
    }
    _, *lines = csv.reader(io.StringIO(deviations_csv({"deviations": {"llava": {"ga": entry}}}), newline=""))
    assert lines == [
        ["llava", "ga", "7", "2", "lm.0", "q", "10", "0.5", "0.01"],
        ["llava", "ga", "7", "2", "lm.1", "q", "20", "0.25", ""],
        ["llava", "ga", "7", "2", "lm.1", "k", "30", "0.0", "0.02"],
    ]
