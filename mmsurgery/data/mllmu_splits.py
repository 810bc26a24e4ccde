"""The forget and retain split of MLLMU-Bench: whose they are, and the rows they are trained on.

A split's training rows are looked for in three places, in this order; all give the same samples:
the split in a folder `baseline_train_split` (a repository of its own), a column `metadata` in the split's
own folder, and the rows of `ft_Data` whose IDs the split holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.data.benchmark import Source
from mmsurgery.data.faults import Report
from mmsurgery.data.leakage import OVERLAP, allowing
from mmsurgery.data.mllmu_items import EVALUATION_SOURCE
from mmsurgery.data.samples import Sample
from mmsurgery.data.tables import Row, column_names, distinct, is_text, picture_bytes, read_rows
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import parse_json

SPLIT_REPOSITORY = "baseline_train_split"
TRAINING_SOURCES = (
    "add the folder ft_Data of dataset MLLMMU/MLLMU-Bench, or the repository MLLMMU/baseline_train_split as a folder "
    f"{SPLIT_REPOSITORY}"
)


@dataclass(frozen=True)
class TrainingRow:
    """One row of training data: a picture (None if not asked for or bad) and its pairs by place in the metadata."""

    key: str
    person: str
    """The row's ID, as it stands in the file."""
    picture: bytes | None
    pairs: tuple[tuple[int, str, str], ...]

    def samples(self, part: str) -> Iterator[Sample]:
        """The pairs with the picture; none where the picture is bad."""
        if self.picture is None:
            return
        for place, question, answer in self.pairs:
            yield Sample(
                id=f"{self.key}/metadata/{place}",
                person=f"person/{self.person}",
                question=question,
                answer=answer,
                part=part,
                image_bytes=self.picture,
            )


@dataclass
class Splits:
    """The splits of a source as one call reads them: IDs and training rows are read once each."""

    source: Source
    report: Report
    made_pairs: dict[str, dict[str, list[tuple[str, str]]]] = field(default_factory=dict)
    """Folder -> person -> held-out text pairs, where they have been made."""
    _ids: dict[str, dict[str, None]] = field(default_factory=dict)
    _rows: dict[tuple[str, bool], tuple[TrainingRow, ...]] = field(default_factory=dict)

    def config(self, split: str) -> str:
        """Folder name of the forget or retain split, which is known to share nobody with the forget split.

        Raises:
            InputRefused: if the retain folder holds people of the forget folder, as the celebrities' does.
        """
        if split == "forget":
            return f"forget_{self.source.forget}"
        config = f"retain_{100 - self.source.forget}"
        if config not in self._ids and OVERLAP not in self.source.allow:
            self._refuse_overlap(config)
        return config

    def ids(self, config: str) -> Collection[str]:
        """The IDs of a folder in order, each once."""
        if config not in self._ids:
            folder = self.source.folder
            repository = folder / SPLIT_REPOSITORY
            alone = (repository / config).exists() and not (folder / config).exists()
            rows = read_rows(repository if alone else folder, config, ("ID",), needs=EVALUATION_SOURCE)
            people = (row.person(self.report) for row in rows)
            self._ids[config] = dict.fromkeys(person for person in people if person is not None)
        return self._ids[config].keys()

    def training(self, config: str, *, pictures: bool = True) -> tuple[TrainingRow, ...]:
        """A split's training rows: people in the order of the evaluation rows, whatever file they come from.

        Args:
            pictures: whether pictures are wanted; rows already read with them serve both ways.

        Raises:
            InputRefused: naming both repositories where there are no training rows, or not of everybody.
        """
        for key in ((config, True), (config, pictures)):
            if key in self._rows:
                return self._rows[key]
        place = {person: number for number, person in enumerate(self.ids(config))}
        rows = sorted(self._read(config, pictures), key=lambda row: place.get(row.person, len(place)))
        self._rows[config, pictures] = tuple(rows)
        return self._rows[config, pictures]

    def forget_training(self) -> None:
        """Let go of the training rows and their pictures."""
        self._rows.clear()

    def training_place(self, config: str) -> tuple[Path, str, Collection[str] | None]:
        """Where a split's training rows are: root, folder, and the IDs to keep (None: all)."""
        folder = self.source.folder
        if (folder / SPLIT_REPOSITORY / config).exists():
            return folder / SPLIT_REPOSITORY, config, None
        if "metadata" in column_names(folder, config):
            return folder, config, None
        if (folder / "ft_Data").exists():
            return folder, "ft_Data", self.ids(config)
        raise InputRefused(
            f"{folder / config} has no column metadata, so there is nothing to train on", TRAINING_SOURCES
        )

    def _refuse_overlap(self, config: str) -> None:
        forget = self.config("forget")
        shared = [person for person in self.ids(config) if person in self.ids(forget)]
        if shared:
            del self._ids[config]
            raise InputRefused(
                f"{self.source.folder / config} holds {len(shared)} people of {forget}, such as "
                f"{', '.join(shared[:3])}, so it is not the retain split",
                "the folder Retain_Set is no retain split: it holds celebrities, whose IDs repeat people's; "
                f"put the benchmark's own {config} there, or {allowing(OVERLAP)}",
            )

    def _read(self, config: str, pictures: bool) -> Iterator[TrainingRow]:
        report = self.report
        root, folder, wanted = self.training_place(config)
        columns = ("image", "metadata") if pictures else ("metadata",)
        met: Counter[str] = Counter()
        nameless = 0
        rows = read_rows(root, folder, columns, ("ID",), needs=TRAINING_SOURCES)
        for row in distinct(rows, report) if pictures else rows:
            person = row.person(report) if "ID" in row.cells else None
            if "ID" in row.cells and person is None:
                nameless += 1
                continue
            if wanted is not None and person is not None and person not in wanted:
                continue
            try:
                objects = _metadata(row)
                person = person or _metadata_id(objects, row)
            except InputRefused as error:
                report.fault("bad_metadata", error.what)
                nameless += person is None
                met[person or ""] += 1
                continue
            if wanted is not None and person not in wanted:
                continue
            key = f"{config}/{person}/{met[person]}"
            met[person] += 1
            picture = None
            try:
                picture = picture_bytes(row.cells["image"], root, row.where) if pictures else None
            except InputRefused as error:
                report.fault("bad_picture", error.what)
            yield TrainingRow(key, person, picture, _pairs(objects, person, row, report))
        missing = sorted(set(wanted or ()) - set(met))
        if len(missing) > nameless:  # rows without ID are counted as faults, and some people's rows are theirs
            raise InputRefused(
                f"{len(missing)} people of {config} are not in {root / folder}, such as {', '.join(missing[:3])}",
                TRAINING_SOURCES,
            )


def _metadata(row: Row) -> list[dict[str, Any]]:
    value = parse_json(row.text("metadata").encode(), f"{row.where}: column metadata")
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputRefused(f"{row.where}: column metadata is not a list of objects")
    return value


def _metadata_id(objects: list[dict[str, Any]], row: Row) -> str:
    ids = {entry["ID"] for entry in objects if is_text(entry.get("ID"))}
    if len(ids) != 1:
        raise InputRefused(f"{row.where}: no column ID, and metadata names {len(ids)} people")
    return str(ids.pop())


def _pairs(objects: list[dict[str, Any]], person: str, row: Row, report: Report) -> tuple[tuple[int, str, str], ...]:
    """The pairs of a row by place; those of objects that name another person are faults."""
    pairs = []
    for place, entry in enumerate(objects):
        if any(key.startswith("Additional_") for key in entry):
            report.notes["additional"] += 1
            continue
        if (named := entry.get("ID")) is not None and _plain_id(named) != _plain_id(person):
            other = f"ID {str(named)[:40]!r}, the row is of {person!r}"
            report.fault("metadata_of_other", f"{row.where}: metadata object {place} has {other}")
            continue
        question, answer = entry.get("Question"), entry.get("Answer")
        if is_text(question) and is_text(answer):
            pairs.append((place, question, answer))
        else:
            report.fault("empty_pair", f"{row.where}: metadata object {place}")
    return tuple(pairs)


def _plain_id(value: object) -> str:
    """An ID without blanks and leading zeros: how the published objects spell it is not known."""
    return str(value).strip().lstrip("0")
