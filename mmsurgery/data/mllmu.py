"""MLLMU-Bench as published: parquet folders, read as they are, every deviation counted.

    forget_5|10|15/  retain_95|90|85/   evaluation rows (`Classification_Task`), some copies with `metadata`
    ft_Data/                            training rows of all people (`metadata`)
    baseline_train_split/forget_5/ ...  training rows by split, a repository of its own
    Retain_Set/                         celebrities (not the retain split); their IDs overlap with people's
    Test_Set/                           further pictures of everybody (`images`)
    Full_Set/                           everybody, read for the report only
    extra/text_pairs.parquet, extra/perception.parquet   optional files of ours

What rows a folder holds is decided by its columns, never by its name. IDs are text and stay text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from mmsurgery.data import mllmu_counts
from mmsurgery.data.benchmark import TASKS, Source
from mmsurgery.data.faults import Report
from mmsurgery.data.mllmu_items import read_items, read_perception
from mmsurgery.data.mllmu_splits import Splits
from mmsurgery.data.mllmu_texts import TEXT_PAIRS, texts
from mmsurgery.data.remembered import remembered
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UnusableData, unknown

__all__ = ["PERCEPTION", "TEXT_PAIRS", "MLLMUBench", "benchmark"]

PERCEPTION = "extra/perception.parquet"


class MLLMUBench:
    """The reader. A call reads the source's files, unless they are as they were at an earlier one."""

    name = "mllmu-bench"
    of_files_alone = True
    ratios = (5, 10, 15)
    """Percentages of people that there are splits to forget."""
    asking = "mllmu-bench"
    published = True
    """Whether the files should have the counts of MLLMU-Bench's published ones; `report` says where they differ."""

    def parts(self, source: Source) -> tuple[str, ...]:
        return ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa", "retain_image_qa")

    def columns(self, source: Source) -> tuple[str, ...]:
        has = {name: (source.folder / name).exists() for name in ("Retain_Set", "Test_Set", PERCEPTION)}
        return (
            *("forget_vqa", "forget_qa", "retain_vqa", "retain_qa"),
            *(("realworld_vqa", "realworld_qa") if has["Retain_Set"] else ()),
            *(("test_vqa",) if has["Test_Set"] else ()),
            *(("forget_perception",) if has[PERCEPTION] else ()),
        )

    @remembered
    def samples(self, source: Source, part: str) -> list[Sample]:
        """The samples of a part (see `Benchmark.samples`)."""
        splits = Splits(source, Report())
        return _complete(self._samples(splits, part), part, splits)

    @remembered
    def items(self, source: Source, column: str, task: str = "classification") -> list[Item]:
        """The items of a column (see `Benchmark.items`)."""
        splits = Splits(source, Report())
        found = self._items(splits, column, task)
        if found or task == "classification":
            return _complete(found, column, splits)
        splits.report.check(source.allow)
        return []

    def training(self, source: Source, which: str) -> tuple[Source, tuple[str, ...]]:
        """What `vanilla`, `gold` and `reference` are fine-tuned on, as the original: picture questions only, and
        for gold what text says of the forget people."""
        kept = {
            "vanilla": ("forget_vqa", "retain_vqa"),
            "gold": ("retain_vqa", "forget_qa"),
            "reference": ("retain_vqa",),
        }
        return source, kept[which]

    def notes(self, source: Source) -> dict[str, str]:
        """Column -> what a reader of its scores should know."""
        notes = {}
        if "test_vqa" in self.columns(source):
            notes["test_vqa"] = "all pictures of each person are asked about"
        return notes

    def report(self, source: Source) -> Report:
        """Read everything once and say what is in it, and what is otherwise than published.

        Raises:
            as `samples` and `items` do, faults of open questions included.
        """
        splits = Splits(source, Report())
        report = splits.report
        for part in self.parts(source):
            report.counts[f"{part} samples"] = len(self._samples(splits, part))
        for split in ("forget", "retain"):
            config = splits.config(split)
            root, folder, wanted = splits.training_place(config)
            joined = ", joined by ID" if wanted is not None else ""
            place = (root / folder).relative_to(source.folder)
            report.notes[f"{config} trained on rows of {place}{joined}"] = len(splits.training(config, pictures=False))
        report.deviations += mllmu_counts.mixed_people(splits)
        splits.forget_training()
        for column in self.columns(source):
            report.counts[f"{column} items"] = len(self._items(splits, column, "classification"))
        counted = list(mllmu_counts.differences(splits))  # reads the open questions, so their faults are met
        report.deviations += counted if self.published else []
        report.check(source.allow)
        return report

    def _samples(self, splits: Splits, part: str) -> list[Sample]:
        if part not in self.parts(splits.source):
            raise unknown("part", part, self.parts(splits.source))
        split, _, modality = part.partition("_")
        config = splits.config(split)
        if modality == "vqa":
            return [sample for row in splits.training(config) for sample in row.samples(part)]
        if modality == "qa":
            return texts(splits, config, part)
        pictures: dict[str, bytes] = {}
        for row in splits.training(config):
            if row.picture is not None:
                pictures.setdefault(f"person/{row.person}", row.picture)
        found = texts(splits, config, part)
        return [_with_picture(text, pictures[text.person]) for text in found if text.person in pictures]

    def _items(self, splits: Splits, column: str, task: str) -> list[Item]:
        source, report = splits.source, splits.report
        if column not in self.columns(source):
            raise unknown("column", column, self.columns(source))
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        if column == "forget_perception":
            people = _asked_about(splits)
            return read_perception(source.folder, PERCEPTION, people, report) if task == "classification" else []
        split, _, kind = column.partition("_")
        modality = "image" if kind == "vqa" else "text"
        config = {"realworld": "Retain_Set", "test": "Test_Set"}.get(split) or splits.config(split)
        wanted = _asked_about(splits) if split == "test" else None
        return read_items(source.folder, config, column, task, modality, wanted, report)


benchmark = MLLMUBench()


def _asked_about(splits: Splits) -> Collection[str]:
    """IDs of the people of whom Test_Set and perception hold more than is asked."""
    people = splits.source.people
    if people is None:
        return splits.ids(splits.config("forget"))
    return {person.removeprefix("person/") for person in people}


def _complete(found: list[Any], name: str, splits: Splits) -> list[Any]:
    splits.report.check(splits.source.allow)
    if not found:
        unresolved = splits.report.notes["unresolved_text"]
        why = f" ({unresolved} text pairs could not be resolved)" if unresolved else ""
        raise UnusableData(f"{name} of {splits.source.folder} is empty{why}", "check the data folder")
    return found


def _with_picture(text: Sample, picture: bytes) -> Sample:
    return dataclasses.replace(text, part="retain_image_qa", image_bytes=picture)
