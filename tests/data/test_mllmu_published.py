"""The MLLMU-Bench reader on files as published, in full number with small pictures: counts, layouts, deviations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mllmu_files import COLUMNS, CONFIGS, LAYOUTS, PER_PERSON, Files, change, person_id

from mmsurgery.data.benchmark import Source
from mmsurgery.data.leakage import check_overlap
from mmsurgery.data.mllmu import MLLMUBench
from mmsurgery.data.samples import data_sha256
from mmsurgery.data.tables import files
from mmsurgery.errors import InputRefused

READER = MLLMUBench()
SMALL = {"people": 40, "celebrities": 3, "pixels": 4}
AT_5 = ("forget_5", "retain_95", "ft_Data")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Files(tmp_path_factory.mktemp("full") / "MLLMU-Bench", pixels=4).write()


@pytest.fixture
def small(tmp_path: Path) -> Files:
    return Files(tmp_path / "small", **SMALL)


def test_the_maker_keeps_the_published_format(full: Path) -> None:
    assert {path.name for path in full.iterdir()} == set(CONFIGS)
    assert [path.name for path in files(full, "Test_Set")] == [f"train-0000{i}-of-00002.parquet" for i in (0, 1)]
    for config in CONFIGS:
        schema = pq.read_schema(files(full, config)[0])
        kind = config if config in COLUMNS else "training" if config == "ft_Data" else "evaluation"
        assert tuple(schema.names) == COLUMNS[kind]
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert set(features) == set(schema.names)
    tasks = pq.read_schema(files(full, "forget_5")[0]).field("Classification_Task").type
    member = (
        "struct<Correct_Answer: string, Options: struct<A: string, B: string, C: string, D: string>, Question: string>"
    )
    assert [str(field.type.value_type) for field in tasks] == [member, member]
    assert sum(pq.read_metadata(path).num_rows for config in CONFIGS for path in files(full, config)) == 3153


@pytest.mark.parametrize("percent", [5, 10, 15])
def test_published_counts(full: Path, percent: int) -> None:
    report = READER.report(Source(full, percent))
    forget, retain = 5 * percent, 500 - 5 * percent
    counts = report.counts
    assert counts["forget_vqa samples"] == forget * PER_PERSON
    assert counts["retain_vqa samples"] == retain * PER_PERSON
    # nine flat facts a biography, two nested; both splits' samples and the pictured retain samples
    assert counts["forget_qa samples"] == forget * 9
    assert counts["retain_qa samples"] == counts["retain_image_qa samples"] == retain * 9
    assert report.notes["unresolved_text"] == 500 * 2
    assert report.notes["additional"] == 500
    # person 001 is drawn for forget_15
    missing = {5: "retain_95", 10: "retain_90", 15: "forget_15"}[percent]
    short = {config: 5 * (config == missing) for config in (f"forget_{percent}", f"retain_{100 - percent}")}
    for modality in ("vqa", "qa"):
        assert counts[f"forget_{modality} items"] == forget * 5 - short[f"forget_{percent}"]
        assert counts[f"retain_{modality} items"] == retain * 5 - short[f"retain_{100 - percent}"]
        assert counts[f"realworld_{modality} items"] == 765
    assert counts["test_vqa items"] == 3 * counts["forget_vqa items"]
    assert not report.faults
    people = forget if missing == "forget_15" else retain
    lines = [
        f"{missing}: {people - 1} people have 5 {modality} classification questions, 1 has 0: 001 (as published)"
        for modality in ("image", "text")
    ]
    tested = [lines[0].replace("forget_15", "Test_Set")] if missing == "forget_15" else []
    assert report.deviations == lines + tested
    asked = {"retain_95": "retain", "retain_90": "retain", "forget_15": "forget"}[missing]
    assert report.without_questions == [f"{asked}_{kind} 001" for kind in ("vqa", "qa")] + ["test_vqa 001"] * len(
        tested
    )


def test_every_layout_gives_the_same_samples(tmp_path: Path) -> None:
    seen, used = [], []
    for number, layout in enumerate(LAYOUTS):
        folder = Files(tmp_path / layout, **SMALL, layout=layout).write(AT_5)
        if number:  # another order of rows is no other data
            place = {"baseline_train_split": "baseline_train_split/retain_95"}.get(layout)
            if place is not None:
                change(folder, place, lambda rows: rows.reverse())
        source = Source(folder, 5)
        seen.append([data_sha256(READER.samples(source, part)) for part in READER.parts(source)])
        used.append([note for note in READER.report(source).notes if "trained on" in note])
    assert seen[0] == seen[1] == seen[2]
    assert used == [
        [f"{config} trained on rows of ft_Data, joined by ID" for config in ("forget_5", "retain_95")],
        [f"{config} trained on rows of baseline_train_split/{config}" for config in ("forget_5", "retain_95")],
        [f"{config} trained on rows of {config}" for config in ("forget_5", "retain_95")],
    ]


def test_without_directory_and_training_ids_nothing_changes(small: Files, tmp_path: Path) -> None:
    old = dataclasses.replace(small, root=tmp_path / "old", directory=False, training_ids=False)
    here, there = Source(small.write(AT_5), 5), Source(old.write(AT_5), 5)
    assert "ID" not in pq.read_schema(files(there.folder, "ft_Data")[0]).names
    for part in READER.parts(here):
        assert READER.samples(here, part) == READER.samples(there, part)
    for column in READER.columns(here):
        assert READER.items(here, column) == READER.items(there, column)


# deviations: named, never refused


def _report_lines(folder: Path, *allow: str) -> list[str]:
    lines = READER.report(Source(folder, 5, {"allow": allow})).deviations
    return [line for line in lines if "as published" not in line]


@pytest.fixture
def copy(full: Path, tmp_path: Path) -> Path:
    """The full set, to be changed."""
    shutil.copytree(full, tmp_path / "copy")
    return tmp_path / "copy"


def test_complete_retain_people_deviate_from_the_published_files(copy: Path) -> None:
    def complete(rows: list[dict[str, Any]]) -> None:
        rows[0]["Classification_Task"] = rows[1]["Classification_Task"]

    change(copy, "retain_95", complete)
    assert _report_lines(copy) == [
        "retain_95: 2,375 image classification questions, published 2,370",
        "retain_95: 2,375 text classification questions, published 2,370",
    ]


def test_missing_rows_and_questions_are_lines(copy: Path) -> None:
    def drop(rows: list[dict[str, Any]]) -> None:
        rows[0]["Mask_Task"].pop()
        rows[1]["Generation_Task"].clear()
        rows[2]["Classification_Task"]["Image_Textual_Questions"].pop()

    change(copy, "Retain_Set", drop)
    change(copy, "Full_Set", lambda rows: rows.pop(7))
    change(copy, "ft_Data", lambda rows: rows.append({**rows[0], "ID": "501"}))
    assert _report_lines(copy) == [
        "Full_Set: 1 person is missing that the splits hold: 008",
        "Full_Set: 499 rows, published 500",
        "ft_Data: 501 rows, published 500",
        "Retain_Set: 152 people have 5 image classification questions, 1 has 4: 003",
        "Retain_Set: 764 image classification questions, published 765",
        "Retain_Set: 152 people have 2 text cloze questions, 1 has 1: 001",
        "Retain_Set: 305 text cloze questions, published 306",
        "Retain_Set: 1 person has 0 image generation questions: 002",
        "Retain_Set: 1 person has 0 text generation questions: 002",
    ]


def _rename(row: dict[str, Any], person: str) -> None:
    row.update(ID=person, metadata=row["metadata"].replace(f'"{row["ID"]}"', f'"{person}"'))


def test_people_in_no_split_and_trained_from_elsewhere_are_lines(tmp_path: Path) -> None:
    folder = Files(tmp_path / "split", **SMALL, layout="baseline_train_split").write()
    forget = [row["ID"] for row in pq.read_table(folder / "forget_5").to_pylist()]
    gone = person_id(next(n for n in range(5, 40) if person_id(n) not in forget))
    change(folder, "retain_95", lambda rows: rows.remove(next(row for row in rows if row["ID"] == gone)))
    change(folder, "baseline_train_split/forget_5", lambda rows: _rename(rows[0], gone))
    lines = READER.report(Source(folder, 5)).deviations
    for line in (
        f"Full_Set: 1 person is neither in forget_5 nor in retain_95: {gone}",
        f"baseline_train_split/forget_5: trains 1 person who is not in forget_5: {gone}",
        f"baseline_train_split/forget_5: 1 person is missing that forget_5 holds: {forget[0]}",
        f"baseline_train_split/retain_95: trains 1 person who is not in retain_95: {gone}",
        "forget_5: 2 rows, published 25",
        "baseline_train_split/retain_95: 38 rows, published 475",
    ):
        assert line in lines


def test_a_reader_of_other_files_reports_no_published_counts(small: Files) -> None:
    class Smaller(MLLMUBench):
        published = False

    folder = small.write()
    assert "forget_5: 2 rows, published 25" in READER.report(Source(folder, 5)).deviations
    assert Smaller().report(Source(folder, 5)).deviations == []


# celebrities


def test_the_celebrities_are_refused_as_retain_split(copy: Path) -> None:
    shutil.rmtree(copy / "retain_95")
    (copy / "Retain_Set").rename(copy / "retain_95")
    source = Source(copy, 5)
    for part in ("retain_vqa", "retain_qa", "retain_image_qa"):
        with pytest.raises(InputRefused, match=r"retain_95 holds \d+ people of forget_5, such as \d{3}.*Retain_Set"):
            READER.samples(source, part)
    for column in ("retain_vqa", "retain_qa"):
        with pytest.raises(InputRefused, match="is not the retain split"):
            READER.items(source, column)
    with pytest.raises(InputRefused, match="is not the retain split"):
        READER.report(source)
    allowed = Source(copy, 5, {"allow": ("forget_retain_overlap",)})
    assert len(READER.items(allowed, "retain_vqa")) == 765


def test_celebrities_share_no_key_with_people(full: Path) -> None:
    source = Source(full, 5)
    people = {i.person for c in ("forget_vqa", "retain_vqa") for i in READER.items(source, c)}
    stars = {i.person for i in READER.items(source, "realworld_vqa")}
    assert {p.partition("/")[2] for p in stars} <= {*(p.partition("/")[2] for p in people), "001"}
    assert not people & stars
    assert check_overlap(READER.samples(source, "forget_vqa"), READER.samples(source, "retain_vqa")) == 0


# text saliency as the official code has it, and notes


def test_official_text_is_the_scored_text(full: Path) -> None:
    official = Source(full, 5, {"saliency_text": "official"})
    for split, count in (("forget", 125), ("retain", 2370)):
        samples = READER.samples(official, f"{split}_qa")
        items = READER.items(official, f"{split}_qa")
        assert [(s.id, s.person, s.question, s.answer) for s in samples] == [
            (i.id, i.person, i.question, (i.options or {})[i.gold]) for i in items
        ]
        assert len(samples) == count
        assert {s.part for s in samples} == {f"{split}_qa"}
    pictured = READER.samples(official, "retain_image_qa")
    assert [s.question for s in pictured] == [s.question for s in READER.samples(official, "retain_qa")]
    assert all(s.image_bytes is not None for s in pictured)
    assert READER.report(official).without_questions == ["retain_qa 001", "retain_vqa 001"]
    held_out = READER.samples(Source(full, 5), "forget_qa")
    assert not {s.question for s in held_out} & {i.question for i in READER.items(official, "forget_qa")}


def test_notes_on_columns(full: Path, small: Files) -> None:
    tested = {"test_vqa": "all pictures of each person are asked about"}
    assert READER.notes(Source(full, 5)) == tested
    official = {"saliency_text": "official"}
    assert READER.notes(Source(full, 5, official)) == tested
    assert READER.notes(Source(small.write(AT_5), 5)) == {}


def test_uneven_questions_that_add_up_are_not_as_published(small: Files) -> None:
    def shift(rows: list[dict[str, Any]]) -> None:
        one, other = (row["Classification_Task"]["Pure_Text_Questions"] for row in rows)
        other.append({**one.pop(), "Question": "Another question?"})

    folder = dataclasses.replace(small, people=500).write(AT_5)
    change(folder, "forget_5", lambda rows: shift(rows[:2]))
    people = [row["ID"] for row in pq.read_table(folder / "forget_5", columns=["ID"]).to_pylist()]
    line = f"forget_5: 23 people have 5 text classification questions, 1 has 4: {people[0]}, 1 has 6: {people[1]}"
    assert _report_lines(folder) == [line]


def test_rows_that_differ_in_their_picture_only_are_no_repeats(small: Files) -> None:
    folder = small.write(AT_5)
    change(folder, "forget_5", lambda rows: rows.append({**rows[0], "image": rows[1]["image"]}))
    assert len(READER.items(Source(folder, 5), "forget_vqa")) == 3 * 5
    change(folder, "forget_5", lambda rows: rows.append(rows[0]))
    with pytest.raises(InputRefused, match="1 times row that stands twice"):
        READER.items(Source(folder, 5), "forget_vqa")
