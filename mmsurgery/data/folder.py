"""Anyone's own pictures: a folder with `rows.jsonl` or `rows.csv`, and pictures anywhere below it.

    role      forget | retain | realworld
    use       train | test; without it a row with options is for testing, another for training
    person    whom or what the row is about
    question, answer
    image     path of a picture below the folder; without it the row is a text question
    options   of a test row: 2 to 26 texts, the answer once among them; in CSV separated by |

A train row with role R becomes a sample of part `R_vqa` (with image) or `R_qa`, a test row an item of the column
of that name. Roles say who is forgotten: a source's `forget` percentage has no meaning here.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

from mmsurgery.data.benchmark import TASKS, Source
from mmsurgery.data.faults import Report
from mmsurgery.data.folder_rows import OwnRow, own_rows
from mmsurgery.data.remembered import remembered
from mmsurgery.data.samples import Item, Sample
from mmsurgery.data.tables import picture_bytes
from mmsurgery.errors import UsageError, unknown
from mmsurgery.settings import SALIENCY_TEXTS

PARTS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa", "realworld_vqa")
COLUMNS = (*PARTS, "realworld_qa")


class OwnPictures:
    """The reader. Stateless: every call reads the file of rows, and raises as `folder_rows.own_rows` does."""

    name = "folder"
    of_files_alone = True

    def parts(self, source: Source) -> tuple[str, ...]:
        """The parts that have train rows."""
        return _named(_rows(source), PARTS, "train")

    def columns(self, source: Source) -> tuple[str, ...]:
        """The columns that have test rows."""
        return _named(_rows(source), COLUMNS, "test")

    @remembered
    def samples(self, source: Source, part: str) -> list[Sample]:
        """The samples of a part (see `Benchmark.samples`)."""
        rows = _rows(source)
        if part not in (parts := _named(rows, PARTS, "train")):
            raise unknown("part", part, parts)
        picture = pictures_of(source.folder)
        return [
            Sample(
                id=f"rows/{row.line}",
                person=f"person/{row.person}",
                question=row.question,
                answer=row.answer,
                part=part,
                image_bytes=picture(row),
            )
            for row in rows
            if row.use == "train" and row.name == part
        ]

    @remembered
    def items(self, source: Source, column: str, task: str = "classification") -> list[Item]:
        """The items of a column (see `Benchmark.items`): rows with options for `classification`, without for
        `generation`; there is no cloze. A column of one kind has none of the other."""
        rows = _rows(source)
        if column not in (columns := _named(rows, COLUMNS, "test")):
            raise unknown("column", column, columns)
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        picture = pictures_of(source.folder)
        return [
            item_of(row, column, task, picture(row))
            for row in rows
            if row.use == "test" and row.name == column and _task(row) == task
        ]

    def report(self, source: Source) -> Report:
        """Read everything once and say what is in it; open questions are counted apart from items."""
        report = Report()
        for row in _rows(source, report):
            kind = "samples" if row.use == "train" else "open questions" if row.options is None else "items"
            report.counts[f"{row.name} {kind}"] += 1
        return report

    def notes(self, source: Source) -> dict[str, str]:
        """What a reader of a column must know: forget and retain columns without test rows, and columns that have
        open questions, which the default protocol does not ask."""
        rows = [row for row in _rows(source) if row.use == "test"]
        found = {}
        for column in COLUMNS:
            asked = [row for row in rows if row.name == column]
            open_questions = sum(row.options is None for row in asked)
            if not asked and not column.startswith("realworld"):
                role, _, kind = column.partition("_")
                shown = "forgotten" if role == "forget" else "kept"
                pictured = "with" if kind == "vqa" else "without"
                found[column] = f"no test row of role {role} {pictured} image: what is {shown} there cannot be seen"
            elif open_questions:
                found[column] = (
                    f"{open_questions} of {len(asked)} test rows have no options: protocol official alone asks them"
                )
        return found


benchmark = OwnPictures()


def _rows(source: Source, report: Report | None = None) -> list[OwnRow]:
    if source.saliency_text != SALIENCY_TEXTS[0]:
        raise UsageError(
            f"benchmark.saliency_text is '{source.saliency_text}', but one's own rows say what is measured: train rows",
            f"set saliency_text = '{SALIENCY_TEXTS[0]}' in [benchmark] of mmsurgery.toml",
        )
    return own_rows(source.folder, source.allow, report or Report())


def _named(rows: list[OwnRow], order: tuple[str, ...], use: str) -> tuple[str, ...]:
    there = {row.name for row in rows if row.use == use}
    return tuple(name for name in order if name in there)


def pictures_of(folder: Path) -> Callable[[OwnRow], bytes | None]:
    """A function from a row to its encoded picture; one that several rows share is read once."""
    met: dict[str, bytes] = {}

    def picture(row: OwnRow) -> bytes | None:
        if row.image is None:
            return None
        if row.image not in met:
            cell = {"bytes": None, "path": row.image}
            met[row.image] = picture_bytes(cell, folder, f"{folder} rows line {row.line}: image")
        return met[row.image]

    return picture


def _task(row: OwnRow) -> str:
    return "generation" if row.options is None else "classification"


def item_of(row: OwnRow, column: str, task: str, picture: bytes | None) -> Item:
    """The item that a test row is, under a column's name."""
    options = None if row.options is None else dict(zip(string.ascii_uppercase, row.options, strict=False))
    gold = row.answer if options is None else next(k for k, text in options.items() if text == row.answer)
    return Item(
        id=f"rows/{row.line}",
        person=f"person/{row.person}",
        question=row.question,
        column=column,
        task=task,
        options=options,
        gold=gold,
        image_bytes=picture,
    )
