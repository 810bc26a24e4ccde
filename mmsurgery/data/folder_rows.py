"""The rows of one's own pictures, checked: every fault of all of them is found in one reading."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.digests import file_identity
from mmsurgery.data.faults import Report
from mmsurgery.data.folder_records import REQUIRED, Fault, Record, read_records, refusal, rows_file, short, unknown_word
from mmsurgery.data.leakage import OVERLAP, allowing
from mmsurgery.data.tables import BELOW, picture_bytes
from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery.paths import real

ROLES = ("forget", "retain", "realworld")
USES = ("train", "test")
MAX_OPTIONS = 26
REPEATED = "repeated_row"

_EXAMPLES = {
    ".jsonl": '{"role": "ROLE", "person": "Ada", "question": "Who is this?", "answer": "Ada.", "image": "ada.png"}',
    ".csv": "ROLE,Ada,Who is this?,Ada.,ada.png under the header role,person,question,answer,image",
}
_PATH = "give image as the path below the data folder, with / between folders, of a PNG, JPEG or WebP"
_whole_pictures: set[tuple[Any, ...]] = set()
"""Path and identity of pictures that were looked at; it saves time alone."""


@dataclass(frozen=True)
class OwnRow:
    """One question of one's own."""

    line: int
    """Line of the file on which the row starts, from 1."""
    role: str
    use: str
    person: str
    """As first spelled in the file: spellings that differ in case or blanks are one person."""
    question: str
    answer: str
    image: str | None
    """Path below the data folder."""
    options: tuple[str, ...] | None

    @property
    def name(self) -> str:
        """The part of a train row, the column of a test row."""
        return f"{self.role}_{'qa' if self.image is None else 'vqa'}"


def own_rows(
    folder: Path, allow: Collection[str], report: Report, *, trained: Collection[str] = ("forget", "retain")
) -> list[OwnRow]:
    """The rows of a data folder in the file's order, every picture of theirs looked at.

    Args:
        allow: faults accepted by name: of `repeated_row` the repetitions are left out, of
            `forget_retain_overlap` the rows are kept; both are counted in `report`.
        trained: roles of which there has to be a train row.

    Raises:
        UsageError, MissingArtifact: as `rows_file`; also for an unknown name in `allow`.
        InputRefused: with the number of faults and the first three, each with its line.
        UnusableData: if somebody is to be forgotten and retained, or nobody to be either.
    """
    report.check(allow)
    path = rows_file(folder)
    records, faults = read_records(path)
    if not records and not faults:
        raise InputRefused(f"{path} has no rows", f"add some, such as {_example(path, 'forget')}")
    spellings: dict[str, str] = {}
    rows = [row for record in records if (row := _row(record, folder, spellings, faults))]
    overlaps = list[Fault]()
    for name, line, what, fix in (*_repetitions(rows), *_overlaps(rows)):
        if name in allow:
            report.fault(name, f"{path} line {line}")
        else:
            (overlaps if name == OVERLAP else faults).append(Fault(line, what, f"{fix}, or {allowing(name)}"))
    if faults or overlaps:
        raise refusal(path, [*faults, *overlaps], InputRefused if faults else UnusableData)
    missing = [role for role in trained if not any(r.role == role and r.use == "train" for r in rows)]
    if missing:
        roles, examples = " or ".join(missing), " and ".join(_example(path, role) for role in missing)
        raise UnusableData(f"{path} has no train row with role {roles}", f"add such as {examples}")
    repeated = {line for _, line, *_ in _repetitions(rows)}
    return [row for row in rows if row.line not in repeated]


def _example(path: Path, role: str) -> str:
    return _EXAMPLES[path.suffix].replace("ROLE", role)


# one row


def _row(record: Record, folder: Path, spellings: dict[str, str], faults: list[Fault]) -> OwnRow | None:
    """The row that a record is; None, and its faults added, if it is none."""
    values, before = record.values, len(faults)

    def fault(what: str, fix: str) -> None:
        faults.append(Fault(record.line, what, fix))

    for key in REQUIRED:
        if key not in values:
            fault(f"{key} is missing or empty", f"give the row its {key}")
    role, image, options = values.get("role"), values.get("image"), values.get("options")
    use = values.get("use", "train" if options is None else "test")
    if role is not None and role not in ROLES:
        fault(unknown_word("role", role, ROLES), "role is forget, retain or realworld")
    if use not in USES:
        fault(unknown_word("use", use, USES), "use is train or test")
    if options is not None and use == "train":
        fault("options stand in a train row", "leave options out, or make it a test row")
    elif options is not None:
        _check_options(options, values.get("answer"), fault)
    if image is None and (role, use) == ("realworld", "train"):
        fault("image is missing: a realworld train row needs one", "give the row its image, or make it a test row")
    elif image is not None and (found := _picture_fault(image, folder)):
        fault(*found)
    if len(faults) > before:
        return None
    return OwnRow(
        line=record.line,
        role=values["role"],
        use=use,
        person=spellings.setdefault(_folded(values["person"]), values["person"]),
        question=values["question"],
        answer=values["answer"],
        image=image,
        options=None if options is None else tuple(options),
    )


def _folded(person: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", person).casefold().split())


def _check_options(options: list[str], answer: str | None, fault: Callable[[str, str], None]) -> None:
    twice = next((option for option, times in Counter(options).items() if times > 1), None)
    if not 2 <= len(options) <= MAX_OPTIONS:
        fault(f"options has {len(options)} texts", f"give options 2 to {MAX_OPTIONS} texts")
    elif "" in options:
        fault("options has an empty text", "give every option its text")
    elif twice is not None:
        fault(f"options has '{short(twice)}' twice", "give every option once")
    elif answer is not None and answer not in options:
        close = difflib.get_close_matches(short(answer), [short(option) for option in options], n=1)
        guess = f" (the nearest is '{close[0]}')" if close else ""
        fault(f"options lacks the answer '{short(answer)}'{guess}", "write the answer as it stands in options")


def _picture_fault(name: str, folder: Path) -> tuple[str, str] | None:
    """Why a picture cannot be used, and what to do; None if it can.

    Header and checksums are looked at as `tables.picture_bytes` does, once for each state of a file.
    """
    identity: tuple[Any, ...] | None = None
    try:
        base = real(folder)
        path = base / name
        if real(path).is_relative_to(base) and path.is_file():
            identity = (str(path), *file_identity(path))
            if identity in _whole_pictures:
                return None
        picture_bytes({"bytes": None, "path": name}, folder, "image")
    except InputRefused as error:
        return short(error.what, 300), _PATH if error.next_step == BELOW else str(error.next_step)
    except (OSError, RuntimeError, ValueError) as error:  # a name too long or with a null, links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        return f"image: {short(name)} cannot be read: {short(reason)}", _PATH
    if identity:
        _whole_pictures.add(identity)
    return None


# rows against each other


def _repetitions(rows: list[OwnRow]) -> list[tuple[str, int, str, str]]:
    """Rows that stand in the file before: the fault's name, line, what, fix."""
    first: dict[tuple[Any, ...], int] = {}
    found = []
    for row in rows:
        content = (row.role, row.use, row.person, row.question, row.answer, row.image, row.options)
        line = first.setdefault(content, row.line)
        if line != row.line:
            found.append((REPEATED, row.line, f"the row repeats line {line}", "remove it"))
    return found


def _overlaps(rows: list[OwnRow]) -> list[tuple[str, int, str, str]]:
    """People who are to be forgotten and retained: the fault's name, line, what, fix."""
    lines: dict[str, dict[str, int]] = {}
    for row in rows:
        lines.setdefault(row.person, {}).setdefault(row.role, row.line)
    found = []
    for person, met in lines.items():
        if {"forget", "retain"} <= met.keys():
            where = f"forget in line {met['forget']} and retain in line {met['retain']}"
            what = f"person '{short(person)}' has role {where}"
            found.append((OVERLAP, max(met["forget"], met["retain"]), what, "give each person one of the roles"))
    return found
