"""What may be null or wrong in MLLMU-Bench's rows: refused with the row, or allowed by name, left out and counted."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mllmu_files import Files, Row, change, person_id
from PIL import Image

from mmsurgery.data.benchmark import Source
from mmsurgery.data.faults import FAULTS
from mmsurgery.data.mllmu import MLLMUBench
from mmsurgery.data.tables import files
from mmsurgery.errors import InputRefused

READER = MLLMUBench()
VQA, QA = "Image_Textual_Questions", "Pure_Text_Questions"
NONE = dict.fromkeys("ABCD")
Edit = Callable[[Row], Any]


@pytest.fixture
def small(tmp_path: Path) -> Files:
    return Files(tmp_path / "small", people=40, celebrities=3, pixels=4)


def _first(**values: Any) -> Edit:
    """A change of the first image question."""
    return lambda row: row["Classification_Task"][VQA][0].update(values)


def _option(letter: str, text: str | None) -> Edit:
    return lambda row: row["Classification_Task"][VQA][0]["Options"].update({letter: text})


def _gold_again(row: Row) -> None:
    options = row["Classification_Task"][VQA][0]["Options"]
    options["D"] = f" {options['A'].upper()}"


def _open(task: str, **values: Any) -> Edit:
    return lambda row: row[task][0].update(values)


def _cell(**values: Any) -> Edit:
    return lambda row: row.update(values)


def _cut(row: Row) -> None:
    row["image"]["bytes"] = row["image"]["bytes"][:-20]


EVALUATION = {
    # pattern: (fault, change of a row of retain_95, column, task, how many items are left out)
    "null ID": ("empty_id", _cell(ID=None), "retain_vqa", "classification", 5),
    "blank ID": ("empty_id", _cell(ID=" "), "retain_qa", "cloze", 2),
    "null picture": ("bad_picture", _cell(image=None), "retain_vqa", "classification", 5),
    "null picture members": ("bad_picture", _cell(image={"bytes": None, "path": None}), "retain_vqa", "generation", 1),
    "cut picture": ("bad_picture", _cut, "retain_vqa", "classification", 5),
    "null member": ("empty_question", lambda row: row["Classification_Task"][VQA].append(None), "retain_vqa", "", 0),
    "null question": ("empty_question", _first(Question=None), "retain_vqa", "", 1),
    "blank question": ("empty_question", _first(Question=" "), "retain_vqa", "", 1),
    "null gold": ("empty_question", _first(Correct_Answer=None), "retain_vqa", "", 1),
    "null options": ("empty_option", _first(Options=None), "retain_vqa", "", 1),
    "options all null": ("empty_option", _first(Options=NONE), "retain_vqa", "", 1),
    "null option": ("empty_option", _option("D", None), "retain_vqa", "", 1),
    "blank option": ("empty_option", _option("D", " "), "retain_vqa", "", 1),
    "gold no option": ("gold_not_an_option", _first(Correct_Answer="E"), "retain_vqa", "", 1),
    "gold in lower case": ("gold_not_an_option", _first(Correct_Answer="a"), "retain_vqa", "", 1),
    "gold text twice": ("gold_twice", _gold_again, "retain_vqa", "", 1),
    "no blank": ("cloze_blank", _open("Mask_Task", Question="She earns much."), "retain_vqa", "cloze", 1),
    "two blanks": ("cloze_blank", _open("Mask_Task", Question="__ earns ____."), "retain_vqa", "cloze", 1),
    "null cloze gold": ("empty_question", _open("Mask_Task", Ground_Truth=None), "retain_vqa", "cloze", 1),
    "other case": ("unknown_type", _open("Mask_Task", Type="image_Textual"), "retain_vqa", "cloze", 1),
    "null type": ("unknown_type", _open("Generation_Task", Type=None), "retain_vqa", "generation", 1),
    "null open member": ("unknown_type", lambda row: row["Mask_Task"].append(None), "retain_qa", "cloze", 0),
}
PICTURES = {
    # pattern: (fault, change of a forget row of Test_Set, how many items are left out)
    "empty list": ("no_pictures", _cell(images=[]), 15),
    "null list": ("no_pictures", _cell(images=None), 15),
    "null member": ("bad_picture", lambda row: row["images"].__setitem__(1, None), 5),
    "null bytes": ("bad_picture", lambda row: row["images"][2].update(bytes=None), 5),
}
TRAINING = {
    # pattern: (fault, change of a row of ft_Data, how many samples of retain_vqa are left out)
    "null ID": ("empty_id", _cell(ID=None), 5),
    "null picture": ("bad_picture", _cell(image=None), 5),
    "null metadata": ("bad_metadata", _cell(metadata=None), 5),
    "no JSON": ("bad_metadata", _cell(metadata="[{"), 5),
    "no objects": ("bad_metadata", _cell(metadata="[null]"), 5),
    "null answer": ("empty_pair", _cell(metadata='[{"Question": "Q?", "Answer": null}]'), 5),
}


def refused_or_left_out(
    folder: Path, fault: str, where: str, read: Callable[[Source], Any], lost: int, whole: int
) -> None:
    refused = rf"1 times {FAULTS[fault]}, first \S*{where}\b"
    for call in (read, READER.report):
        with pytest.raises(InputRefused, match=refused) as caught:
            call(Source(folder, 5))
        assert f"add '{fault}' to allow" in str(caught.value)
    allowed = Source(folder, 5, {"allow": (fault,)})
    assert len(read(allowed)) == whole - lost
    assert READER.report(allowed).faults == {fault: 1}


@pytest.mark.parametrize("pattern", EVALUATION)
def test_evaluation_rows(small: Files, pattern: str) -> None:
    fault, edit, column, task, lost = EVALUATION[pattern]
    folder = small.write(("forget_5", "retain_95", "ft_Data"))
    read = lambda source: READER.items(source, column, task or "classification")  # noqa: E731
    whole = len(read(Source(folder, 5)))
    change(folder, "retain_95", lambda rows: edit(rows[1]))
    where = "retain_95/train-00000-of-00001.parquet row 1"
    refused_or_left_out(folder, fault, where, read, lost, whole)


@pytest.mark.parametrize("pattern", PICTURES)
def test_lists_of_pictures(small: Files, pattern: str) -> None:
    fault, edit, lost = PICTURES[pattern]
    folder = small.write(("forget_5", "retain_95", "ft_Data", "Test_Set"))
    number = min(small.forget_people(5) - {small.without_questions})
    change(folder, "Test_Set", lambda rows: edit(rows[number]))
    where = f"Test_Set/train-00000-of-00001.parquet row {number}"
    refused_or_left_out(folder, fault, where, lambda source: READER.items(source, "test_vqa"), lost, 2 * 3 * 5)


@pytest.mark.parametrize("pattern", TRAINING)
def test_training_rows(small: Files, pattern: str) -> None:
    fault, edit, lost = TRAINING[pattern]
    folder = small.write(("forget_5", "retain_95", "ft_Data"))
    number = next(n for n in range(40) if n not in small.forget_people(5))
    change(folder, "ft_Data", lambda rows: edit(rows[number]))
    where = f"ft_Data/train-00000-of-00001.parquet row {number}"
    refused_or_left_out(folder, fault, where, lambda source: READER.samples(source, "retain_vqa"), lost, 38 * 5)


def test_a_biography_that_is_no_object(small: Files) -> None:
    folder = small.write(("forget_5", "retain_95", "ft_Data"))
    change(folder, "retain_95", _second(_cell(biography="[]")))
    where = "retain_95/train-00000-of-00001.parquet row 1"
    refused_or_left_out(folder, "bad_biography", where, lambda s: READER.samples(s, "retain_qa"), 9, 38 * 9)


def _second(edit: Edit) -> Callable[[list[Row]], Any]:
    return lambda rows: edit(rows[1])


def test_rows_without_id_explain_only_as_many_missing_people(small: Files) -> None:
    folder = small.write(("forget_5", "retain_95", "ft_Data"))
    change(folder, "ft_Data", lambda rows: (rows[5].update(ID=None), rows.pop(9)))
    with pytest.raises(InputRefused, match=r"2 people of retain_95 are not in .*ft_Data"):
        READER.samples(Source(folder, 5, {"allow": ("empty_id",)}), "retain_vqa")


def test_a_picture_that_ends_early_is_refused_when_it_is_used(small: Files) -> None:
    folder = small.write(("forget_5", "retain_95", "ft_Data"))
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(picture, "JPEG")
    change(folder, "retain_95", _second(_cell(image={"bytes": picture.getvalue()[:-200], "path": None})))
    person = person_id([n for n in range(40) if n not in small.forget_people(5)][1])
    item = next(i for i in READER.items(Source(folder, 5), "retain_vqa") if i.person == f"person/{person}")
    with pytest.raises(InputRefused, match=rf"retain_95/{person}/0/.*picture cannot be decoded"):
        _ = item.image


def test_null_question_lists_are_people_without_questions(small: Files) -> None:
    folder = small.write(("forget_5", "retain_95", "ft_Data"))
    retained = [n for n in range(40) if n not in small.forget_people(5)]
    assert retained[0] == small.without_questions
    change(folder, "retain_95", _second(_cell(Classification_Task=None, Mask_Task=None)))
    change(folder, "retain_95", lambda rows: rows[2].update(Classification_Task={VQA: None, QA: []}))
    report = READER.report(Source(folder, 5))
    without = [f"retain_{kind} {person_id(n)}" for kind in ("vqa", "qa") for n in retained[:3]]
    assert report.without_questions == without
    assert not report.faults
    people = ", ".join(person_id(n) for n in retained[:3])
    assert f"retain_95: 35 people have 5 text classification questions, 3 have 0: {people}" in report.deviations


def test_lists_of_another_type_are_refused(small: Files) -> None:
    folder = small.write(("forget_5", "retain_95", "ft_Data"))
    path = files(folder, "forget_5")[0]
    table = pq.read_table(path)
    place = table.schema.names.index("Classification_Task")
    tasks = pa.array([{VQA: 5, QA: "x"}] * len(table))
    pq.write_table(table.set_column(place, "Classification_Task", tasks), path)
    for column in ("forget_vqa", "forget_qa"):
        with pytest.raises(InputRefused, match=r"forget_5.* row 0: .*_Questions is no list of questions"):
            READER.items(Source(folder, 5), column)
