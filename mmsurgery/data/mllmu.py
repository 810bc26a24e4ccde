"""MLLMU-Bench as published: parquet folders, read as they are, every deviation counted.

    forget_5|10|15/  retain_95|90|85/   evaluation rows (`Classification_Task`), some copies with `metadata`
    ft_Data/                            training rows of all people (`metadata`)
    baseline_train_split/forget_5/ ...  training rows by split, a repository of its own
    Retain_Set/                         celebrities (not the retain split); their IDs overlap with people's
    Test_Set/                           further pictures of everybody (`images`)
    extra/text_pairs.parquet, extra/perception.parquet   optional files of ours

What rows a folder holds is decided by its columns, never by its name. IDs are text and stay text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.data import text_pairs
from mmsurgery.data.benchmark import TASKS, Source
from mmsurgery.data.mllmu_items import EVALUATION_SOURCE, read_items, read_perception
from mmsurgery.data.samples import Item, Sample
from mmsurgery.data.tables import Report, Row, column_names, distinct, is_text, picture_bytes, read_rows
from mmsurgery.errors import InputRefused, UnusableData, unknown
from mmsurgery.provenance import parse_json

TEXT_PAIRS = "extra/text_pairs.parquet"
PERCEPTION = "extra/perception.parquet"
SPLIT_REPOSITORY = "baseline_train_split"
_TRAINING_SOURCES = (
    "add the folder ft_Data of dataset MLLMMU/MLLMU-Bench, or the repository MLLMMU/baseline_train_split as a folder "
    f"{SPLIT_REPOSITORY}"
)


class MLLMUBench:
    """The reader. Stateless: every call reads the source's files."""

    name = "mllmu-bench"

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

    def samples(self, source: Source, part: str) -> list[Sample]:
        """The samples of a part (see `Benchmark.samples`)."""
        report = Report()
        found = self._samples(source, part, report)
        return _complete(found, part, report, source)

    def items(self, source: Source, column: str, task: str = "classification") -> list[Item]:
        """The items of a column (see `Benchmark.items`)."""
        report = Report()
        found = self._items(source, column, task, report)
        if found or task == "classification":
            return _complete(found, column, report, source)
        report.check(source.allow)
        return []

    def report(self, source: Source) -> Report:
        """Read everything once and say what is in it; raises as `samples` and `items` do."""
        report = Report()
        for part in self.parts(source):
            report.counts[f"{part} samples"] = len(self._samples(source, part, report))
        for column in self.columns(source):
            report.counts[f"{column} items"] = len(self._items(source, column, "classification", report))
        report.check(source.allow)
        return report

    # samples

    def _samples(self, source: Source, part: str, report: Report) -> list[Sample]:
        if part not in self.parts(source):
            raise unknown("part", part, self.parts(source))
        split, _, modality = part.partition("_")
        config = split_config(source, split)
        if modality == "vqa":
            return [sample for row in _training_rows(source, config, report) for sample in row.samples(part)]
        texts = self._texts(source, config, part, report)
        if modality == "qa":
            return texts
        pictures: dict[str, bytes] = {}
        for row in _training_rows(source, config, report):
            pictures.setdefault(row.person, row.picture or b"")
        return [_with_picture(text, pictures[text.person]) for text in texts if pictures.get(text.person)]

    def _texts(self, source: Source, config: str, part: str, report: Report) -> list[Sample]:
        """Text pairs of a split's people: from our own file, else from biographies, else from picture pairs."""
        if (source.folder / TEXT_PAIRS).exists():
            wanted = set(_ids(source, config))
            found: dict[str, list[text_pairs.Pair]] = {}
            for row in read_rows(source.folder, TEXT_PAIRS, ("ID", "question", "answer")):
                if (person := row.text("ID")) in wanted:
                    found.setdefault(person, []).append((row.text("question"), row.text("answer")))
        else:
            found = _made_pairs(source, config, report)
        return [
            Sample(id=f"{config}/{person}/text/{i}", person=f"person/{person}", question=q, answer=a, part=part)
            for person, pairs in found.items()
            for i, (q, a) in enumerate(pairs)
        ]

    # items

    def _items(self, source: Source, column: str, task: str, report: Report) -> list[Item]:
        if column not in self.columns(source):
            raise unknown("column", column, self.columns(source))
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        if column == "forget_perception":
            people = set(_ids(source, split_config(source, "forget")))
            return read_perception(source.folder, PERCEPTION, people, report) if task == "classification" else []
        split, _, kind = column.partition("_")
        modality = "image" if kind == "vqa" else "text"
        config = {"realworld": "Retain_Set", "test": "Test_Set"}.get(split) or split_config(source, split)
        wanted = set(_ids(source, split_config(source, "forget"))) if split == "test" else None
        return read_items(source.folder, config, column, task, modality, wanted, report)


benchmark = MLLMUBench()


def split_config(source: Source, split: str) -> str:
    """Folder name of the forget or retain split."""
    return f"forget_{source.forget}" if split == "forget" else f"retain_{100 - source.forget}"


def _complete(found: list[Any], name: str, report: Report, source: Source) -> list[Any]:
    report.check(source.allow)
    if not found:
        unresolved = report.notes["unresolved_text"]
        why = f" ({unresolved} text pairs could not be resolved)" if unresolved else ""
        raise UnusableData(f"{name} of {source.folder} is empty{why}", "check the data folder")
    return found


def _with_picture(text: Sample, picture: bytes) -> Sample:
    return Sample(
        id=text.id,
        person=text.person,
        question=text.question,
        answer=text.answer,
        part="retain_image_qa",
        image_bytes=picture,
    )


def _ids(source: Source, config: str) -> list[str]:
    """The split's IDs in order, each once."""
    root = source.folder if (source.folder / config).exists() else source.folder / SPLIT_REPOSITORY
    return list(dict.fromkeys(row.text("ID") for row in read_rows(root, config, ("ID",), needs=EVALUATION_SOURCE)))


# training rows


@dataclass(frozen=True)
class TrainingRow:
    """One row of training data: a picture (None if not asked for) and its pairs by place in the metadata."""

    key: str
    person: str
    picture: bytes | None
    pairs: tuple[tuple[int, str, str], ...]

    def samples(self, part: str) -> Iterator[Sample]:
        for place, question, answer in self.pairs:
            yield Sample(
                id=f"{self.key}/metadata/{place}",
                person=self.person,
                question=question,
                answer=answer,
                part=part,
                image_bytes=self.picture,
            )


def _training_place(source: Source, config: str) -> tuple[Path, str, set[str] | None]:
    """Where a split's training rows are: root, folder, and the IDs to keep (None: all)."""
    if (source.folder / SPLIT_REPOSITORY / config).exists():
        return source.folder / SPLIT_REPOSITORY, config, None
    if "metadata" in column_names(source.folder, config):
        return source.folder, config, None
    if (source.folder / "ft_Data").exists():
        return source.folder, "ft_Data", set(_ids(source, config))
    raise InputRefused(
        f"{source.folder / config} has no column metadata, so there is nothing to train on", _TRAINING_SOURCES
    )


def _training_rows(source: Source, config: str, report: Report, *, pictures: bool = True) -> Iterator[TrainingRow]:
    """A split's training rows, from its own files or from `ft_Data` joined by ID."""
    root, folder, wanted = _training_place(source, config)
    columns = ("image", "metadata") if pictures else ("metadata",)
    met: Counter[str] = Counter()
    rows = read_rows(root, folder, columns, ("ID",), needs=_TRAINING_SOURCES)
    for row in distinct(rows, report) if pictures else rows:
        person = row.text("ID") if "ID" in row.cells else None
        if wanted is not None and person is not None and person not in wanted:
            continue
        try:
            objects = _metadata(row)
            person = person or _metadata_id(objects, row)
        except InputRefused as error:
            report.fault("bad_metadata", error.what)
            met[person or ""] += 1
            continue
        if wanted is not None and person not in wanted:
            continue
        number = met[person]
        met[person] += 1
        try:
            picture = picture_bytes(row.cells["image"], root, row.where) if pictures else None
        except InputRefused as error:
            report.fault("bad_picture", error.what)
            continue
        yield TrainingRow(f"{config}/{person}/{number}", f"person/{person}", picture, _pairs(objects, row, report))
    if missing := sorted((wanted or set()) - set(met)):
        raise InputRefused(
            f"{len(missing)} people of {config} are not in {root / folder}, such as {', '.join(missing[:3])}",
            _TRAINING_SOURCES,
        )


def _metadata(row: Row) -> list[dict[str, Any]]:
    value = parse_json(row.text("metadata").encode(), f"{row.where}: column metadata")
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputRefused(f"{row.where}: column metadata is not a list of objects")
    return value


def _metadata_id(objects: list[dict[str, Any]], row: Row) -> str:
    ids = {entry["ID"] for entry in objects if isinstance(entry.get("ID"), str)}
    if len(ids) != 1:
        raise InputRefused(f"{row.where}: no column ID, and metadata names {len(ids)} people")
    return str(ids.pop())


def _pairs(objects: list[dict[str, Any]], row: Row, report: Report) -> tuple[tuple[int, str, str], ...]:
    pairs = []
    for place, entry in enumerate(objects):
        if any(key.startswith("Additional_") for key in entry):
            report.notes["additional"] += 1
            continue
        question, answer = entry.get("Question"), entry.get("Answer")
        if is_text(question) and is_text(answer):
            pairs.append((place, str(question), str(answer)))
        else:
            report.fault("empty_pair", f"{row.where}: metadata object {place}")
    return tuple(pairs)


def _made_pairs(source: Source, config: str, report: Report) -> dict[str, list[text_pairs.Pair]]:
    """Person -> text pairs, from biography facts; people without get their picture pairs, named."""
    found: dict[str, list[text_pairs.Pair]] = {}
    names: dict[str, str | None] = {}
    for row in read_rows(source.folder, config, ("ID",), ("biography",), needs=EVALUATION_SOURCE):
        person = row.text("ID")
        if found.get(person):
            continue
        biography = row.cells.get("biography")
        facts = text_pairs.parse_biography(biography, f"{row.where}: column biography") if is_text(biography) else {}
        found[person], unresolved = text_pairs.biography_pairs(facts)
        report.notes["unresolved_text"] += unresolved
        name = facts.get("name")
        names.setdefault(person, name.strip() if isinstance(name, str) else None)
    if all(found.values()):
        return found
    for training in _training_rows(source, config, report, pictures=False):
        person = training.person.removeprefix("person/")
        if person in found and not found[person]:
            pairs = [(question, answer) for _, question, answer in training.pairs]
            found[person], unresolved = text_pairs.named_pairs(pairs, names[person])
            report.notes["unresolved_text"] += unresolved
    return found
