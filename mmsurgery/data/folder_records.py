"""The two formats of one's own rows, `rows.jsonl` and `rows.csv`, read into the same records.

Blanks around a value do not count; an empty optional value is one that is not there. A fault names the file's
line; for CSV that is where the row starts, since a cell may hold line breaks.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import read_bytes
from mmsurgery.errors import InputRefused, MissingArtifact, MmsurgeryError, UsageError, nearest
from mmsurgery.paths import real
from mmsurgery.provenance import parse_json

FILES = ("rows.jsonl", "rows.csv")
KEYS = ("role", "use", "person", "question", "answer", "image", "options")
REQUIRED = ("role", "person", "question", "answer")

_BOM = b"\xef\xbb\xbf"
_SHOWN_FAULTS = 3
_KINDS = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_ONE_OBJECT = "write one JSON object on each line, in UTF-8"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row."""

    line: int
    """Line of the file on which the row starts, from 1."""
    what: str
    fix: str


@dataclass(frozen=True)
class Record:
    """A row as it stands in the file."""

    line: int
    values: dict[str, Any]
    """By key: texts that are not empty, and `options` as a list of texts."""


def rows_file(folder: Path) -> Path:
    """The one file of rows of a data folder.

    Raises:
        MissingArtifact: if there is none.
        UsageError: if there are both.
        InputRefused: if it is a link that leads out of the folder.
    """
    found = [path for name in FILES if (path := folder / name).exists() or path.is_symlink()]
    if not found:
        there = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        named = f" (files there: {', '.join(there[:5])})" if there else ""
        raise MissingArtifact(f"{folder} holds no {' or '.join(FILES)}{named}", "write it, one row for each question")
    if len(found) > 1:
        raise UsageError(f"{folder} holds both {' and '.join(FILES)}", "keep one of them")
    if not real(found[0]).is_relative_to(real(folder)):
        raise InputRefused(f"{found[0]} leads out of the data folder", "copy the file into the folder")
    return found[0]


def read_records(path: Path) -> tuple[list[Record], list[Fault]]:
    """The records of a file in its order, and the faults of rows that are none.

    Raises:
        InputRefused: if the file cannot be read, or is empty.
    """
    faults: list[Fault] = []
    read = _csv_records if path.suffix == ".csv" else _json_records
    return list(read(read_bytes(path).removeprefix(_BOM), faults)), faults


def refusal(path: Path, faults: list[Fault], kind: type[MmsurgeryError]) -> MmsurgeryError:
    """One error for all faults: their number and the first three, each with its line."""
    faults = sorted(faults, key=lambda fault: fault.line)
    shown = faults[:_SHOWN_FAULTS]
    fixes = "; ".join(dict.fromkeys(fault.fix for fault in shown))
    if len(faults) == 1:
        return kind(f"{path} line {shown[0].line}: {shown[0].what}", fixes)
    named = "; ".join(f"line {fault.line}: {fault.what}" for fault in shown)
    more = f"; and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
    return kind(f"{path} has {len(faults)} faults: {named}{more}", fixes)


def short(text: str, length: int = 60) -> str:
    """A text for a message."""
    return text if len(text) <= length else text[:length] + "..."


def unknown_word(kind: str, word: str, known: Collection[str]) -> str:
    """What is wrong with a word that is not known, with the nearest one that is."""
    guess = nearest(short(word).lower(), known)
    return f"unknown {kind} '{short(word)}'" + (f" (did you mean '{guess}'?)" if guess else "")


def _unknown_key(line: int, key: str) -> Fault:
    return Fault(line, unknown_word("key", key, KEYS), f"use the keys {', '.join(KEYS)}")


# JSON lines


def _json_records(data: bytes, faults: list[Fault]) -> Iterator[Record]:
    for line, content in enumerate(data.split(b"\n"), 1):
        if not content.strip():
            continue
        try:
            value = parse_json(content, "the row")
        except InputRefused as error:
            # the parser's line is always its first
            faults.append(Fault(line, error.what.replace("line 1 column", "column"), _ONE_OBJECT))
            continue
        if not isinstance(value, dict):
            faults.append(Fault(line, f"the row is {_KINDS[type(value)]}, not an object", _ONE_OBJECT))
            continue
        found = [fault for key, cell in value.items() if (fault := _value_fault(line, key, cell))]
        faults += found
        if not found:
            yield Record(
                line, {key: kept for key, cell in value.items() if (kept := _stripped(cell)) not in ("", None)}
            )


def _value_fault(line: int, key: str, value: Any) -> Fault | None:
    if key not in KEYS:
        return _unknown_key(line, key)
    if value is None or (isinstance(value, str) and key != "options"):
        return None
    if key != "options":
        return Fault(line, f"{key} is {_KINDS[type(value)]}, not a text", f"write {key} in double quotes")
    if not isinstance(value, list):
        return Fault(line, f"options is {_KINDS[type(value)]}, not a list", 'write options as ["...", "..."]')
    other = next((option for option in value if not isinstance(option, str)), "")
    if other == "":
        return None
    return Fault(line, f"options holds {_KINDS[type(other)]}, not texts alone", "write every option in double quotes")


def _stripped(value: Any) -> Any:
    return [option.strip() for option in value] if isinstance(value, list) else value and value.strip()


# CSV


def _csv_records(data: bytes, faults: list[Fault]) -> Iterator[Record]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        faults.append(Fault(line, f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as CSV in UTF-8"))
        return
    header: list[str] | None = None
    for line, row in _csv_rows(text, faults):
        cells = [cell.replace("\r\n", "\n").strip() for cell in row]
        if header is None:
            if found := _header_faults(line, cells):
                faults += found
                return
            header = cells
        elif len(cells) != len(header):
            what = f"the row has {len(cells)} cells, the header {len(header)}"
            faults.append(Fault(line, what, "put cells with commas, quotes or line breaks in double quotes"))
        else:
            values: dict[str, Any] = {key: cell for key, cell in zip(header, cells, strict=True) if cell}
            if "options" in values:
                values["options"] = [option.strip() for option in values["options"].split("|")]
            yield Record(line, values)


def _csv_rows(text: str, faults: list[Fault]) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line on which it starts."""
    found, start = [], 1
    limit = csv.field_size_limit(len(text) + 1)  # of the whole process, 131,072 unless told
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        for cells in reader:
            if cells:
                found.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        what = f"the row is not valid CSV ({error}); nothing after it was read"
        faults.append(Fault(start, what, 'put the cell in double quotes, and write a quote in it as ""'))
    finally:
        csv.field_size_limit(limit)
    return found


def _header_faults(line: int, header: list[str]) -> list[Fault]:
    if len(header) == 1 and (sign := next((sign for sign in ";\t" if sign in header[0]), None)):
        named = "semicolons" if sign == ";" else "tabs"
        return [Fault(line, f"the header's names are separated by {named}", "separate cells by commas")]
    found = [_unknown_key(line, key) for key in header if key not in KEYS]
    for key, times in Counter(header).items():
        if times > 1 and key in KEYS:
            found.append(Fault(line, f"the header has {key} {times} times", "keep one of the columns"))
    for key in REQUIRED:
        if key not in header:
            found.append(Fault(line, f"the header lacks {key}", f"begin the file with {','.join(KEYS)}"))
    return found
