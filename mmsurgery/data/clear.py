"""CLEAR as published: a folder for each config, pictures and text of 200 fictitious authors.

    forget01|05|10/            retain99|95|90/        pictures with caption and name
    forget01|05|10+tofu/       retain99|95|90+tofu/   the same pictures and TOFU's question-answer rows, mixed
    forget01|05|10_perturbed/  retain_perturbed/      pictures with wrong names and captions, for scoring
    real_faces/  real_world/                          what a model should still know
    data/  full/  full+tofu/                          counted, not read

`retain95_perturbed`, on which the published numbers were made, is not published; it is used where it is there.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mmsurgery.data.benchmark import TASKS, Source
from mmsurgery.data.clear_configs import (
    DATASET,
    PERCENTAGES,
    PUBLIC_RETAIN,
    PUBLISHED,
    TEXT_ROWS,
    column_config,
    forgotten,
    names,
    split_config,
)
from mmsurgery.data.clear_items import FORMS, TRUTH, Form, caption_question, note_unnamed, read_items
from mmsurgery.data.clear_people import pairs, texts
from mmsurgery.data.faults import Report
from mmsurgery.data.leakage import normalised
from mmsurgery.data.remembered import remembered
from mmsurgery.data.samples import Item, Sample
from mmsurgery.data.tables import distinct, is_text, picture_bytes, read_rows, row_count
from mmsurgery.errors import InputRefused, UnusableData, unknown

PARTS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")
COLUMNS = (*PARTS, "realworld_vqa", "realface_vqa", "forget_caption", "retain_caption")


_NOTED = {
    "caption_without_name": "a caption that does not name its author",
    "gold_among_options": "options that hold the true answer already: it is not added again",
}
"""What is counted, and said in the report."""


class Clear:
    """The reader. A call reads the source's files, unless they are as they were at an earlier one."""

    name = "clear"
    of_files_alone = True
    ratios = PERCENTAGES
    """Percentages of people that there are splits to forget."""
    asking = "clear"

    def parts(self, source: Source) -> tuple[str, ...]:
        return PARTS

    def columns(self, source: Source) -> tuple[str, ...]:
        return tuple(column for column in COLUMNS if (source.folder / column_config(source, column)).exists())

    @remembered
    def samples(self, source: Source, part: str) -> list[Sample]:
        """The samples of a part (see `Benchmark.samples`)."""
        report = Report()
        return _complete(list(self._samples(source, part, report)), part, report, source)

    @remembered
    def items(self, source: Source, column: str, task: str = "classification") -> list[Item]:
        """The items of a column (see `Benchmark.items`); task `truth` has the options of CLEAR's own metrics. Of a
        task that a column does not have: none."""
        report = Report()
        found = list(self._items(source, column, task, report))
        return _complete(found, column, report, source) if task in _tasks(column) else []

    def training(self, source: Source, which: str) -> tuple[Source, tuple[str, ...]]:
        """What `vanilla`, `gold` and `reference` are fine-tuned on: captions, and all text questions, whichever of
        them saliency is measured on; the reference captions of the retain authors alone, as MMUnlearner has it."""
        every = dataclasses.replace(source, options={**source.options, "saliency_text": "official"})
        kept = {"vanilla": PARTS, "gold": ("forget_qa", "retain_vqa", "retain_qa"), "reference": ("retain_vqa",)}
        return every, kept[which]

    def notes(self, source: Source) -> dict[str, str]:
        """Column -> what to know when reading its numbers, or that it has none since its folder is not there."""
        half = "every other text pair of an author is scored, the rest is for saliency"
        scored = half if source.saliency_text == "held-out" else "all text pairs are scored"
        private = f"{split_config(source, 'retain')}_perturbed"
        found = {
            "forget_qa": scored,
            "retain_qa": scored,
            "retain_vqa": (
                f"asked of {PUBLIC_RETAIN}, the public substitute for the unpublished {private}"
                if column_config(source, "retain_vqa") == PUBLIC_RETAIN
                else f"asked of {private}, which is not published"
            ),
            "retain_caption": f"asked of {PUBLIC_RETAIN}, the same rows for every forget percentage",
        }
        there = self.columns(source)
        notes = {}
        for column in COLUMNS:
            if column not in there:
                notes[column] = _unseen(source, column)
            elif column in found:
                notes[column] = found[column]
        return notes

    def report(self, source: Source) -> Report:
        """Read everything once and say what is in it; raises as `samples` and `items` do."""
        report = Report()
        for part in PARTS:
            report.counts[f"{part} samples"] = sum(1 for _ in self._samples(source, part, report))
        # the texts of a split are read for its part and again for its column
        unresolved = report.notes["unresolved_author"]
        for column in self.columns(source):
            for task in _tasks(column):
                found = Counter(len(item.options or ()) for item in self._items(source, column, task, report))
                report.counts[f"{column} {task} items"] = found.total()
                if task == "classification":
                    for options, number in sorted(found.items()):
                        report.notes[f"{column} items with {options} options"] = number
        report.notes["unresolved_author"] = unresolved
        _count(source, report)
        for name, what in _NOTED.items():
            if report.notes[name]:
                report.deviations.append(f"{report.notes[name]} times {what}")
        report.check(source.allow)
        return report

    # what the files give, faults counted

    def _samples(self, source: Source, part: str, report: Report) -> Iterator[Sample]:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
        split, _, modality = part.partition("_")
        if modality == "vqa":
            yield from _pictures(source, split, part, report)
            return
        for pair in pairs(source, split, report):
            if source.saliency_text == "official" or pair.place % 2 == 0:
                yield Sample(id=pair.id, person=pair.person, question=pair.question, answer=pair.answer, part=part)

    def _items(self, source: Source, column: str, task: str, report: Report) -> Iterator[Item]:
        if column not in (known := self.columns(source)):
            raise unknown("column", column, known)
        if task not in (tasks := {*TASKS, TRUTH}):
            raise unknown("task", task, tasks)
        if task not in _tasks(column):
            return
        split, _, kind = column.partition("_")
        if kind == "qa":
            for pair in pairs(source, split, report):
                if source.saliency_text == "official" or pair.place % 2 == 1:
                    yield Item(
                        id=pair.id,
                        person=pair.person,
                        question=pair.question,
                        gold=pair.answer,
                        column=column,
                        task=task,
                    )
            return
        own = split in ("forget", "retain")
        people = frozenset(normalised(name) for name in names(source, split)) if own else None
        config = column_config(source, column)
        yield from read_items(source.folder, config, column, _form(column), task, people, report)


benchmark = Clear()


def _unseen(source: Source, column: str) -> str:
    """What to know of a column whose folder is not there."""
    lost = {"forget": "forgotten", "retain": "kept"}.get(column.partition("_")[0], "still known")
    return f"no folder {column_config(source, column)}: what is {lost} there cannot be seen"


def _form(column: str) -> Form:
    split, _, kind = column.partition("_")
    return FORMS[split if split in FORMS else kind]


def _tasks(column: str) -> tuple[str, ...]:
    return ("generation",) if column.endswith("_qa") else _form(column).tasks


def _complete(found: list[Any], name: str, report: Report, source: Source) -> list[Any]:
    report.check(source.allow)
    if not found:
        raise UnusableData(f"{name} of {source.folder} is empty", "check the data folder")
    return found


def _pictures(source: Source, split: str, part: str, report: Report) -> Iterator[Sample]:
    config = split_config(source, split)
    forbidden = forgotten(source, split)
    rows = read_rows(source.folder, config, ("image", "caption", "name"), needs=DATASET)
    for number, row in enumerate(distinct(rows, report)):
        name, caption = row.text("name").strip(), row.cells["caption"]
        if normalised(name) in forbidden:
            report.fault("forget_author_in_retain", f"{row.where}: {name}")
        elif not is_text(caption):
            report.fault("empty_pair", row.where)
        else:
            note_unnamed(caption, name, report)
            try:
                picture = picture_bytes(row.cells["image"], source.folder, row.where)
            except InputRefused as error:
                report.fault("bad_picture", error.what)
                continue
            row_id = f"{config}/{number}"
            yield Sample(
                id=row_id,
                person=f"person/{name}",
                question=caption_question(row_id),
                answer=caption,
                part=part,
                image_bytes=picture,
            )


def _count(source: Source, report: Report) -> None:
    """Rows of every config that is there, against the published numbers."""
    for config, known in PUBLISHED.items():
        if not (source.folder / config).exists():
            continue
        rows = report.counts[f"{config} rows"] = row_count(source.folder, config)
        if rows not in known:
            numbers = f"{known[0]} to {known[-1]}" if isinstance(known, range) else " or ".join(map(str, known))
            report.deviations.append(f"{config} has {rows} rows, published are {numbers}")
    for split in ("forget", "retain"):
        config = f"{split_config(source, split)}+tofu"
        percent = source.forget if split == "forget" else 100 - source.forget
        rows = report.counts[f"{config} text rows"] = sum(1 for _ in texts(source, config, report))
        if rows != TEXT_ROWS * percent // 100:
            report.deviations.append(f"{config} has {rows} text rows, published are {TEXT_ROWS * percent // 100}")
