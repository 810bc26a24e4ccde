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
_WIDE = 22
"""Cells longer than this break at their commas."""


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A `table` environment: the first column to the left, the others to the right, as wide as the text at most."""
    lines = [
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{escape(title)}}}\\smallskip",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{@{{}}l{'r' * (len(header) - 1)}@{{}}}}",
        "\\toprule",
        _row(header),
        "\\midrule",
        *_body(rows),
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\n\\smallskip\n{{\\footnotesize\\raggedright {escape(note)}\\par}}" for note in notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _body(rows: Sequence[Sequence[str]]) -> list[str]:
    broken = any(_breaks(cell) for row in rows for cell in row)
    return [("\\addlinespace\n" if broken and place else "") + _row(row) for place, row in enumerate(rows)]


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return " & ".join([_cell(first, "l"), *(_cell(cell, "r") for cell in others)]) + " \\\\"


def _cell(text: str, side: str) -> str:
    if not _breaks(text):
        return escape(text)
    parts = " \\\\ ".join(escape(part) for part in re.sub(", ", ",\n", text).split("\n"))
    return f"\\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{parts}\\end{{tabular}}"


def _breaks(text: str) -> bool:
    return len(text) > _WIDE and ", " in text


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
