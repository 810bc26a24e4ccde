"""Tables in LaTeX, from text that may hold anything."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmsurgery.errors import printable

_SPECIAL = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    "`": "\\textasciigrave{}",
    # what a row begins with is read as an argument of the end of the row before it
    "[": "{[}",
    "*": "{*}",
    "×": "$\\times$",
    "±": "$\\pm$",
    "−": "$-$",
    "≤": "$\\leq$",
    "≥": "$\\geq$",
    "–": "--",
    "—": "---",
    "…": "\\ldots{}",
    "·": "\\textperiodcentered{}",
    "‘": "\\textquoteleft{}",
    "’": "\\textquoteright{}",
    "“": "\\textquotedblleft{}",
    "”": "\\textquotedblright{}",
    "\N{NO-BREAK SPACE}": "~",
    **{
        letter: f"$\\{name}$"
        for letter, name in zip("αβγδε", ["alpha", "beta", "gamma", "delta", "epsilon"], strict=True)
    },
}
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""Combining marks that every font of LaTeX has on Latin letters."""
_LETTERS = frozenset("ßæÆœŒøØłŁı")
_PIECES = re.compile(
    r"(?P<minus>(?<![\w-])-(?=\d))"
    r"|(?P<dash>(?<=\d)-(?=\d)|(?<=\s)-(?=\s)|^-$)"
    r"|(?P<ligature>(?<=-)-|(?<=')'|(?<=,),)"
    r"|."
)
"""`ligature`: signs that would become another one together with the one before them."""
_MANY = 8
"""Columns beyond which a table is tight."""
_Break = tuple[re.Pattern[str], int]
"""Where a cell breaks, if it is longer than so many letters."""
_COMMAS: _Break = (re.compile(r"(?<=,) "), 22)
_TIGHT: _Break = (re.compile(r"(?<=,) |(?<=\S) (?=\()"), 8)
"""Before brackets, too."""
_WORDS: _Break = (re.compile(r" "), 8)


def table(title: str, label: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A `table` environment: the first column to the left, the others to the right, as wide as the text at most.

    Of many columns intervals stand below their numbers, so that less is scaled down.

    Args:
        label: letters, digits and hyphens, to refer to it by.
    """
    tight = len(header) > _MANY
    places = _TIGHT if tight else _COMMAS
    lines = [
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{escape(title)}}}\\label{{{label}}}\\smallskip",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{@{{}}l{'r' * (len(header) - 1)}@{{}}}}",
        "\\toprule",
        _row(header, _WORDS if tight else _COMMAS),
        "\\midrule",
        *_body(rows, places),
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\n\\smallskip\n{{\\footnotesize\\raggedright {escape(note)}\\par}}" for note in notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _body(rows: Sequence[Sequence[str]], places: _Break) -> list[str]:
    broken = any(len(_lines(cell, places)) > 1 for row in rows for cell in row)
    return [("\\addlinespace\n" if broken and number else "") + _row(row, places) for number, row in enumerate(rows)]


def _row(cells: Sequence[str], places: _Break) -> str:
    first, *others = cells
    return " & ".join([_cell(first, "l", places), *(_cell(cell, "r", places) for cell in others)]) + " \\\\"


def _cell(text: str, side: str, places: _Break) -> str:
    lines = [escape(line) for line in _lines(text, places)]
    if len(lines) == 1:
        return lines[0]
    parts = " \\\\ ".join(lines)
    return f"\\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{parts}\\end{{tabular}}"


def _lines(text: str, places: _Break) -> list[str]:
    where, longest = places
    return where.split(text) if len(text) > longest else [text]


def escape(text: str) -> str:
    """Text as LaTeX prints it letter by letter; hyphens become minus signs and dashes where they are that."""
    return _PIECES.sub(_piece, printable(unicodedata.normalize("NFC", text)))


def _piece(found: re.Match[str]) -> str:
    signs = {"minus": "$-$", "dash": "--", "ligature": f"{{}}{found[0]}"}
    return signs[found.lastgroup] if found.lastgroup else _letter(found[0])


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if letter.isascii() or letter in _LETTERS:
        return letter
    parts = unicodedata.normalize("NFD", letter)
    if len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS:
        return letter
    # these engines take their letters from the fonts of the system
    return f"\\ifdefined\\Umathchar {letter}\\else (U+{ord(letter):04X})\\fi{{}}"
