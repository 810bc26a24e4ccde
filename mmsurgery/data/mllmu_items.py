"""Scored items from MLLMU-Bench's evaluation rows, and from our own perception file.

Cells are read as Parquet gives them: every member of a struct is there, null where nothing was written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mmsurgery.data.faults import Report
from mmsurgery.data.samples import Item
from mmsurgery.data.tables import Row, column_names, distinct, is_text, picture_bytes, read_rows
from mmsurgery.errors import InputRefused

EVALUATION_SOURCE = "use the folders of dataset MLLMMU/MLLMU-Bench"
TASK_COLUMNS = {"classification": "Classification_Task", "cloze": "Mask_Task", "generation": "Generation_Task"}
_LISTS = {"image": "Image_Textual_Questions", "text": "Pure_Text_Questions"}
_TYPES = {"image": "Image_Textual", "text": "Pure_Text"}
_BLANK = re.compile("_{2,}")

Question = tuple[int, str, dict[str, str] | None, str]
"""Place in its list, text, options by letter (None for open questions), gold letter or text."""


def read_items(
    root: Path, config: str, column: str, task: str, modality: str, wanted: Collection[str] | None, report: Report
) -> list[Item]:
    """The items of one task and modality of a folder, row by row, every picture of a row with every question;
    none of an open task that the files or this benchmark do not have.

    Args:
        wanted: IDs to keep; None keeps all.

    Raises:
        InputRefused: for files, columns or wanted people that are missing or damaged.
    """
    known = column_names(root, config)
    if task != "classification" and TASK_COLUMNS.get(task) not in known:
        return []
    images = "image" if "image" in known else "images"
    columns = ("ID", TASK_COLUMNS[task], *((images,) if modality == "image" else ()))
    rows: Iterator[Row] = read_rows(root, config, columns, needs=EVALUATION_SOURCE)
    met: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    nameless = 0
    items: list[Item] = []
    for row in distinct(rows, report) if modality == "image" else rows:
        person = row.person(report)
        nameless += person is None
        if person is None or (wanted is not None and person not in wanted):
            continue
        key = f"{config}/{person}/{met[person]}/{task}/{modality}"
        met[person] += 1
        questions = list(_questions(row, task, modality, report))
        for number, picture in _pictures(row, images, root, report) if modality == "image" else [("", None)]:
            asked[person] += len(questions)
            items += [
                Item(
                    id=f"{key}{number}/{place}",
                    person=f"{'celebrity' if config == 'Retain_Set' else 'person'}/{person}",
                    question=question,
                    column=column,
                    task=task,
                    options=options,
                    gold=gold,
                    image_bytes=picture,
                )
                for place, question, options, gold in questions
            ]
    _all_there(wanted, met, nameless, root / config)
    without = (f"{column} {person}" for person in met if not asked[person])
    report.without_questions += [entry for entry in without if entry not in report.without_questions]
    return items


def count_questions(
    root: Path, config: str, wanted: Collection[str] | None, report: Report
) -> dict[tuple[str, str], Counter[str]]:
    """(task, modality) -> how many sound questions each person has, whatever the pictures are like; without the
    tasks that the files do not have."""
    known = column_names(root, config)
    tasks = [task for task, column in TASK_COLUMNS.items() if column in known]
    counts: dict[tuple[str, str], Counter[str]] = {(task, m): Counter() for task in tasks for m in _LISTS}
    for row in read_rows(root, config, ("ID", *(TASK_COLUMNS[task] for task in tasks)), needs=EVALUATION_SOURCE):
        person = row.person(report)
        if person is None or (wanted is not None and person not in wanted):
            continue
        for (task, modality), count in counts.items():
            count[person] += sum(1 for _ in _questions(row, task, modality, report))
    return counts


def read_perception(root: Path, config: str, wanted: Collection[str], report: Report) -> list[Item]:
    """Questions about what a picture shows whoever it is: one row per picture with a list of questions,
    each with any number of options and the index of the true one."""
    met: Counter[str] = Counter()
    nameless = 0
    items = []
    for row in distinct(read_rows(root, config, ("ID", "image", "questions")), report):
        person = row.person(report)
        nameless += person is None
        if person is None or person not in wanted:
            continue
        key = f"perception/{person}/{met[person]}"
        met[person] += 1
        for _, picture in _pictures(row, "image", root, report):
            for place, entry in enumerate(_records(row.cells["questions"], row, "questions")):
                where = f"{row.where}: question {place}"
                texts, gold = entry.get("options"), entry.get("gold")
                options = {chr(ord("A") + i): text for i, text in enumerate(texts)} if isinstance(texts, list) else None
                letter = chr(ord("A") + gold) if isinstance(gold, int) and 0 <= gold < 26 else ""
                if choice := _sound(entry.get("question"), options, letter, where, report):
                    items.append(
                        Item(
                            id=f"{key}/{place}",
                            person=f"person/{person}",
                            question=choice[0],
                            column="forget_perception",
                            options=choice[1],
                            gold=choice[2],
                            image_bytes=picture,
                        )
                    )
    _all_there(wanted, met, nameless, root / config)
    return items


def _all_there(wanted: Collection[str] | None, met: Collection[str], nameless: int, path: Path) -> None:
    missing = sorted(set(wanted or ()) - set(met))
    if len(missing) > nameless:  # rows without ID are counted as faults, and some people's rows are theirs
        raise InputRefused(f"{path} lacks {len(missing)} people, such as {', '.join(missing[:3])}", EVALUATION_SOURCE)


def _pictures(row: Row, column: str, root: Path, report: Report) -> Iterator[tuple[str, bytes]]:
    """The row's sound pictures with their number (`/0`, ...; nothing where a row has one picture)."""
    cell = row.cells[column]
    if column == "images" and not cell:
        report.fault("no_pictures", f"{row.where}: column images is empty")
    for number, entry in enumerate(cell or []) if column == "images" else [("", cell)]:
        suffix = f"/{number}" if column == "images" else ""
        try:
            yield suffix, picture_bytes(entry, root, f"{row.where}{suffix and ' picture ' + suffix[1:]}")
        except InputRefused as error:
            report.fault("bad_picture", error.what)


def _records(cell: Any, row: Row, column: str) -> list[dict[str, Any]]:
    """The members of a list of structs; a null list is empty, and so is each null member.

    Raises:
        InputRefused: if the cell is no list.
    """
    if cell is not None and not isinstance(cell, list):
        raise InputRefused(f"{row.where}: {column} is no list of questions", EVALUATION_SOURCE)
    return [entry if isinstance(entry, dict) else {} for entry in cell or []]


def _questions(row: Row, task: str, modality: str, report: Report) -> Iterator[Question]:
    cell = row.cells[TASK_COLUMNS[task]]
    if task != "classification":
        yield from _open_questions(row, cell, task, modality, report)
        return
    for place, entry in enumerate(_records((cell or {}).get(_LISTS[modality]), row, _LISTS[modality])):
        where = f"{row.where}: {_LISTS[modality]} {place}"
        if choice := _sound(entry.get("Question"), entry.get("Options"), entry.get("Correct_Answer"), where, report):
            yield place, *choice


def _sound(
    question: Any, options: Any, gold: Any, where: str, report: Report
) -> tuple[str, dict[str, str], str] | None:
    """The choice, if nothing is wrong with it."""
    if not is_text(question) or not is_text(gold):
        report.fault("empty_question", where)
    elif not isinstance(options, dict) or not options or not all(is_text(option) for option in options.values()):
        report.fault("empty_option", where)
    elif gold not in options:
        report.fault("gold_not_an_option", f"{where}, gold '{gold[:20]}'")
    elif [_plain(option) for option in options.values()].count(_plain(options[gold])) > 1:
        report.fault("gold_twice", f"{where}, gold '{options[gold][:20]}'")
    else:
        return question, options, gold
    return None


def _plain(option: str) -> str:
    """An option as a reader would compare it with another."""
    return " ".join(option.casefold().split())


def _open_questions(row: Row, cell: Any, task: str, modality: str, report: Report) -> Iterator[Question]:
    for place, entry in enumerate(_records(cell, row, TASK_COLUMNS[task])):
        where = f"{row.where}: {TASK_COLUMNS[task]} {place}"
        kind, question, gold = (entry.get(key) for key in ("Type", "Question", "Ground_Truth"))
        if kind not in _TYPES.values():
            report.fault("unknown_type", f"{where}, type {str(kind)[:20]!r}")
        elif kind != _TYPES[modality]:
            continue
        elif not is_text(question) or not is_text(gold):
            report.fault("empty_question", where)
        elif task == "cloze" and len(_BLANK.findall(question)) != 1:
            report.fault("cloze_blank", f"{where}, '{question[:60]}'")
        else:
            yield place, question, None, gold
