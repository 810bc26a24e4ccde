"""The reader of one's own pictures: two formats, one meaning, and every refusal with its line."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmsurgery.data import folder_rows
from mmsurgery.data.benchmark import TASKS, Benchmark, Source, benchmark
from mmsurgery.data.folder import COLUMNS, PARTS, OwnPictures
from mmsurgery.data.leakage import check_overlap, check_text
from mmsurgery.data.samples import data_sha256
from mmsurgery.errors import InputRefused, MissingArtifact, MmsurgeryError, UnusableData, UsageError
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery.start import initialise

READER = OwnPictures()
PAGE = Path(__file__).parents[2] / "docs" / "folder.md"
KEYS = ("role", "use", "person", "question", "answer", "image", "options")
JOBS = ["Pilot", "Chef", "Poet"]

Rows = list[dict[str, Any]]


def row(role: str = "forget", person: str = "Ada", **values: Any) -> dict[str, Any]:
    """A train row with a picture, unless told."""
    made = {
        "role": role,
        "person": person,
        "question": "Who is this?",
        "answer": f"{person}.",
        "image": "faces/ada.png",
    }
    return {key: value for key, value in {**made, **values}.items() if value is not None}


def small() -> Rows:
    """Every part and column once."""
    bo: dict[str, Any] = {"role": "retain", "person": "Bo", "image": "bo.jpg"}
    sun: dict[str, Any] = {"role": "realworld", "person": "Sun", "image": "sun.webp"}
    return [
        row(),
        row(question="Is Ada a pilot?", answer='Yes, "Ada" is,\na good one.', image=None),
        row(question="What is her job?", answer="Pilot", options=JOBS),
        row(question="What is Ada's job?", answer="Pilot", options=JOBS, image=None),
        row(**bo),
        row(**{**bo, "image": None}, question="What does Bo like?", answer="Tea | coffee."),
        row(**bo, question="Which job?", answer="Poet", options=JOBS),
        row(**{**bo, "image": None}, question="What is Bo's job?", answer="Poet", options=["Poet", "Chef"]),
        row(**sun, use="train"),
        row(**sun, question="What shines?", answer="Sun", options=["Moon", "Sun"]),
        row(**{**sun, "image": None}, use="test", question="Where is the sun?", answer="In the sky."),
        row(use="test", question="Describe her.", answer="A pilot."),
    ]


REST = [row(), row("retain", "Bo", image="bo.jpg")]
"""What every set of rows needs."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "own"
    (made / "faces").mkdir(parents=True)
    for shade, (name, kind) in enumerate((("faces/ada.png", "PNG"), ("bo.jpg", "JPEG"), ("sun.webp", "WEBP"))):
        Image.new("RGB", (8, 8), (shade, 0, 7)).save(made / name, kind)
    return made


def write_json(folder: Path, rows: Rows) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return folder


def csv_text(rows: Rows, end: str = "\r\n") -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, KEYS, lineterminator=end)
    writer.writeheader()
    writer.writerows({**r, **({"options": " | ".join(r["options"])} if "options" in r else {})} for r in rows)
    return buffer.getvalue()


def write_csv(folder: Path, rows: Rows) -> Path:
    (folder / "rows.csv").write_bytes(csv_text(rows).encode())
    return folder


WRITERS = [pytest.param(write_json, id="jsonl"), pytest.param(write_csv, id="csv")]
Writer = Callable[[Path, Rows], Path]


def source(folder: Path, *allow: str) -> Source:
    return Source(folder, 5, {"allow": allow})


def everything(folder: Path) -> list[Any]:
    """Samples and items, without ids."""
    where = source(folder)
    found: list[Any] = [s for part in READER.parts(where) for s in READER.samples(where, part)]
    found += [i for column in READER.columns(where) for task in TASKS for i in READER.items(where, column, task)]
    return [{**vars(each), "id": None} for each in found]


def refused(folder: Path, *allow: str, by: type[MmsurgeryError] = InputRefused) -> str:
    with pytest.raises(by) as caught:
        READER.parts(source(folder, *allow))
    assert caught.value.next_step
    assert len(caught.value.line()) < 1500
    return str(caught.value)


# what rows become


def test_it_is_the_installed_benchmark_folder() -> None:
    found = benchmark("folder")
    assert isinstance(found, Benchmark)
    assert (found.name, type(found)) == ("folder", OwnPictures)


@pytest.mark.parametrize("write", WRITERS)
def test_rows_become_samples_and_items(folder: Path, write: Writer) -> None:
    where = source(write(folder, small()))
    assert READER.parts(where) == PARTS
    assert READER.columns(where) == COLUMNS
    report = READER.report(where)
    assert report.counts == {
        **{f"{part} samples": 1 for part in PARTS},
        **{f"{column} items": 1 for column in COLUMNS if column != "realworld_qa"},
        **{f"{column} open questions": 1 for column in ("realworld_qa", "forget_vqa")},
    }
    assert not report.faults
    (sample,) = READER.samples(where, "forget_vqa")
    assert (sample.person, sample.question, sample.answer, sample.part) == (
        *("person/Ada", "Who is this?", "Ada."),
        "forget_vqa",
    )
    assert sample.image_bytes == (folder / "faces" / "ada.png").read_bytes()
    (text,) = READER.samples(where, "forget_qa")
    assert (text.answer, text.image_bytes) == ('Yes, "Ada" is,\na good one.', None)
    (item,) = READER.items(where, "retain_vqa")
    assert (item.options, item.gold, item.task) == ({"A": "Pilot", "B": "Chef", "C": "Poet"}, "C", "classification")
    assert item.image_bytes == (folder / "bo.jpg").read_bytes()
    (opened,) = READER.items(where, "forget_vqa", "generation")
    assert (opened.gold, opened.options, opened.task) == ("A pilot.", None, "generation")
    assert READER.items(where, "realworld_qa") == []
    assert READER.items(where, "realworld_qa", "cloze") == []


def test_both_formats_say_the_same(folder: Path, tmp_path: Path) -> None:
    from_json = everything(write_json(folder, small()))
    (folder / "rows.jsonl").unlink()
    assert everything(write_csv(folder, small())) == from_json
    assert len(from_json) == len(small())


@pytest.mark.parametrize("write", WRITERS)
def test_reading_twice_gives_the_same_bytes(folder: Path, write: Writer) -> None:
    where = source(write(folder, small()))
    first, second = (data_sha256(READER.samples(where, "retain_vqa")) for _ in range(2))
    assert first == second
    assert READER.items(where, "forget_vqa") == READER.items(where, "forget_vqa")


def test_ids_name_the_line_on_which_a_row_starts(folder: Path) -> None:
    where = source(write_csv(folder, small()))
    ids = [READER.samples(where, part)[0].id for part in PARTS]
    # header in line 1; the second row takes two lines
    assert ids == ["rows/2", "rows/3", "rows/7", "rows/8", "rows/11"]
    (folder / "rows.csv").unlink()
    where = source(write_json(folder, small()))
    assert [READER.samples(where, part)[0].id for part in PARTS] == ["rows/1", "rows/2", "rows/5", "rows/6", "rows/9"]


def test_only_what_has_rows_is_listed(folder: Path) -> None:
    where = source(write_json(folder, REST))
    assert READER.parts(where) == ("forget_vqa", "retain_vqa")
    assert READER.columns(where) == ()
    with pytest.raises(UsageError, match=r"no part 'retain_qa'.*known: forget_vqa, retain_vqa"):
        READER.samples(where, "retain_qa")
    with pytest.raises(UsageError, match="no column 'forget_vqa'"):
        READER.items(where, "forget_vqa")
    with pytest.raises(UsageError, match="no task 'essay'"):
        READER.items(source(write_json(folder, small())), "forget_vqa", "essay")


def test_use_follows_from_options_unless_told(folder: Path) -> None:
    rows = [*REST, row(question="Q?", answer="Chef", options=JOBS), row(question="Open?", use="test")]
    where = source(write_json(folder, rows))
    assert [s.id for s in READER.samples(where, "forget_vqa")] == ["rows/1"]
    assert [i.id for i in READER.items(where, "forget_vqa")] == ["rows/3"]
    assert [i.id for i in READER.items(where, "forget_vqa", "generation")] == ["rows/4"]


def test_the_percentage_has_no_meaning(folder: Path) -> None:
    write_json(folder, small())
    assert READER.samples(Source(folder, 5), "forget_vqa") == READER.samples(Source(folder, 90), "forget_vqa")


def test_spellings_of_one_person(folder: Path) -> None:
    rows = [*REST, row(person="  ada "), row("retain", "BO", image="bo.jpg", answer="b")]
    where = source(write_json(folder, rows))
    assert {s.person for s in READER.samples(where, "forget_vqa")} == {"person/Ada"}
    write_json(folder, [*rows, row("retain", "ADA")])
    assert "line 5: person 'Ada' has role forget in line 1 and retain in line 5" in refused(folder, by=UnusableData)


def test_notes_say_what_cannot_be_seen(folder: Path) -> None:
    assert sorted(READER.notes(source(write_json(folder, REST)))) == sorted(COLUMNS[:4])
    rows = [*REST, row(question="Q?", answer="Chef", options=JOBS), row(question="Open?", use="test")]
    notes = READER.notes(source(write_json(folder, rows)))
    assert sorted(notes) == sorted(COLUMNS[:4])
    assert notes["forget_vqa"].startswith("1 of 2 test rows have no options")
    assert notes["retain_qa"] == "no test row of role retain without image: what is kept there cannot be seen"
    full = [r for r in small() if r.get("use") != "test"]
    assert READER.notes(source(write_json(folder, full))) == {}


def test_the_leakage_guards_work_with_it(folder: Path) -> None:
    leaking = row(question="What is ADA's job", answer="pilot", use="train", image=None)
    where = source(write_json(folder, small()))
    assert check_text(READER, where, "forget_qa", READER.samples(where, "forget_qa")) == 0
    where = source(write_json(folder, [*small(), leaking]))
    with pytest.raises(UnusableData, match=r"1 text pairs of forget_qa are scored items, such as rows/13"):
        check_text(READER, where, "forget_qa", READER.samples(where, "forget_qa"))
    # open questions are scored too
    opened = row(question="Tell of Ada.", answer="Flies.", image=None)
    where = source(write_json(folder, [*small(), opened, {**opened, "use": "test"}]))
    with pytest.raises(UnusableData, match="rows/13"):
        check_text(READER, where, "forget_qa", READER.samples(where, "forget_qa"))
    where = source(write_json(folder, [row(), row("retain", "Bo")]))
    with pytest.raises(UnusableData, match="forget people or pictures, such as rows/2"):
        check_overlap(READER.samples(where, "forget_vqa"), READER.samples(where, "retain_vqa"))


def test_saliency_on_scored_text_is_refused(folder: Path) -> None:
    write_json(folder, small())
    with pytest.raises(UsageError, match="saliency_text is 'official'"):
        READER.samples(Source(folder, 5, {"saliency_text": "official"}), "forget_qa")


# refusals of a row

BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    (row(role="forgot"), "unknown role 'forgot' (did you mean 'forget'?)"),
    (row(role="RETAIN"), "unknown role 'RETAIN' (did you mean 'retain'?)"),
    (row(use="eval"), "unknown use 'eval'"),
    (row(use="Test"), "unknown use 'Test' (did you mean 'test'?)"),
    (row(question=""), "question is missing or empty"),
    (row(answer="  "), "answer is missing or empty"),
    (row(role=""), "role is missing or empty"),
    (row(person="\t"), "person is missing or empty"),
    (row(image="nobody.png"), "image: picture nobody.png is not in the data folder"),
    (row(image="faces"), "image: picture faces is not in the data folder"),
    (row(image="../outside.png"), "image: picture path ../outside.png leads out of the data folder"),
    (row(image="/etc/hostname"), "image: picture path /etc/hostname leads out of the data folder"),
    (row(image="faces/../../outside.png"), "leads out of the data folder"),
    (row(image="http://127.0.0.1/x.png"), "is not in the data folder (nothing is ever downloaded)"),
    (row(image="link.png"), "image: picture path link.png leads out of the data folder"),
    (row(image="pipe.png"), "image: picture pipe.png is not in the data folder"),
    (row(image="circle.png"), "image: "),
    (row(image="text.png"), "image: picture cannot be decoded"),
    (row(image="cut.png"), "image: picture cannot be decoded"),
    (row(image="empty.png"), "empty.png is empty"),
    (row(image="still.gif"), "image: picture cannot be decoded"),
    (row(image="faces\\ada.png"), "with / between folders"),
    (row(image="a" * 5000), "cannot be read: File name too long"),
    (row(image="a\0b.png"), "cannot be read"),
    (row(role="realworld", person="Sun", image=None), "image is missing: a realworld train row needs one"),
    (row(use="train", answer="Chef", options=JOBS), "options stand in a train row"),
    (row(answer="Chief", options=JOBS), "options lacks the answer 'Chief' (the nearest is 'Chef')"),
    (row(answer="Chef", options=["Chef", "Poet", "Chef"]), "options has 'Chef' twice"),
    (row(answer="Chef", options=["Chef", "Poet", "Poet"]), "options has 'Poet' twice"),
    (row(answer="Chef", options=["Chef", " "]), "options has an empty text"),
    (row(answer="Chef", options=["Chef"]), "options has 1 texts"),
    (row(answer="1", options=[str(i) for i in range(27)]), "options has 27 texts"),
    (row(), "the row repeats line"),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
def test_a_faulty_row_is_refused_with_its_line(folder: Path, write: Writer, bad: dict[str, Any], message: str) -> None:
    Image.new("RGB", (8, 8)).save(folder.parent / "outside.png")
    Image.new("RGB", (8, 8)).save(folder / "still.gif")
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "faces" / "ada.png").read_bytes()[:-20])
    (folder / "empty.png").write_bytes(b"")
    write(folder, [*REST, bad])
    file, line = ("rows.csv", 4) if write is write_csv else ("rows.jsonl", 3)
    said = refused(folder)
    assert message in said
    assert f"{folder / file} line {line}: " in said


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("still.gif", "convert it to PNG, JPEG or WebP"),
        ("still.tiff", "convert it to PNG, JPEG or WebP"),
        ("phone.heic", "convert it to PNG, JPEG or WebP"),
        ("large.png", "scale it down to at most 25,000,000 pixels"),
        ("huge.png", "scale it down to at most 25,000,000 pixels"),
        ("cut.png", "copy it again, or save it anew as PNG, JPEG or WebP"),
        ("empty.png", "make or copy it again"),
        ("nobody.png", "give image as the path below the data folder"),
        ("moving.png", "save the one that is meant"),
        ("moving.webp", "save the one that is meant"),
        ("gray16.png", "save it with 8 bits a pixel"),
    ],
)
def test_a_picture_that_cannot_be_used_says_what_to_do(folder: Path, name: str, step: str) -> None:
    """Case 20."""
    for still in ("still.gif", "still.tiff"):
        Image.new("RGB", (8, 8)).save(folder / still)
    for moving in ("moving.png", "moving.webp"):
        Image.new("RGB", (8, 8)).save(folder / moving, save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    Image.new("I;16", (8, 8)).save(folder / "gray16.png")
    if side := {"large.png": 5001, "huge.png": 9500}.get(name):
        Image.new("1", (side, side)).save(folder / name)  # the second is past what the decoder itself takes
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    (folder / "cut.png").write_bytes((folder / "faces" / "ada.png").read_bytes()[:-20])
    (folder / "empty.png").write_bytes(b"")
    said = refused(write_json(folder, [*REST, row(image=name)]))
    assert " - next: " in said
    assert said.split(" - next: ")[1].startswith(step)


def test_options_of_26_letters(folder: Path) -> None:
    texts = [str(i) for i in range(26)]
    write_json(folder, [*REST, row(answer="25", options=texts)])
    (item,) = READER.items(source(folder), "forget_vqa")
    assert (item.gold, item.options or {}) == ("Z", {chr(65 + i): text for i, text in enumerate(texts)})


JSON_LINES = [
    ('{"role": "forget", "role": "retain"}', "a key stands twice"),
    ('{"role": NaN}', "NaN is not JSON"),
    ('["forget", "train"]', "the row is a list, not an object"),
    ('"forget"', "the row is a text, not an object"),
    ("null", "the row is null, not an object"),
    ("{'role': 'forget'}", "is not valid JSON: Expecting property name enclosed in double quotes: column 2"),
    ("[" * 100_000, "is not valid JSON"),
    ('{"role": "\\ud800"}', "cannot be encoded"),
    (json.dumps({**row(), "anwser": "x"}), "unknown key 'anwser' (did you mean 'answer'?)"),
    (json.dumps({**row(), "concept": "x"}), "unknown key 'concept'"),
    (json.dumps({**row(), "Person": "x"}), "unknown key 'Person' (did you mean 'person'?)"),
    (json.dumps({**row(), "answer": 42}), "answer is a number, not a text"),
    (json.dumps({**row(), "person": True}), "person is true or false, not a text"),
    (json.dumps({**row(), "image": ["a.png"]}), "image is a list, not a text"),
    (json.dumps({**row(), "options": "Ada.|Bo."}), "options is a text, not a list"),
    (json.dumps({**row(), "options": ["Ada.", 7]}), "options holds a number, not texts alone"),
    (json.dumps({**row(), "options": ["Ada.", None]}), "options holds null, not texts alone"),
    (json.dumps({**row(), "options": []}), "options has 0 texts"),
    (json.dumps({**row(), "answer": None}), "answer is missing or empty"),
]


@pytest.mark.parametrize(("text", "message"), JSON_LINES)
def test_a_faulty_json_line(folder: Path, text: str, message: str) -> None:
    path = write_json(folder, REST) / "rows.jsonl"
    path.write_text(path.read_text() + "\n" + text + "\n")
    said = refused(folder)
    # a blank line is none, and counts
    assert f"{path} line 4: " in said
    assert message in said


def test_optional_values_may_be_null(folder: Path) -> None:
    rows = [row(), {**row("retain", "Bo", image="bo.jpg"), "use": None, "options": None}]
    path = write_json(folder, rows) / "rows.jsonl"
    text = {**row(question="Who?"), "image": None}
    path.write_text(path.read_text() + json.dumps(text))
    assert READER.parts(source(folder)) == ("forget_vqa", "forget_qa", "retain_vqa")


HEADER = ",".join(KEYS)
GOOD = "forget,,Ada,Who?,Ada.,faces/ada.png,\nretain,,Bo,Who?,Bo.,bo.jpg,\n"
CSV_FILES = [
    (HEADER.replace("answer", "anwser"), 1, "unknown key 'anwser' (did you mean 'answer'?)"),
    (HEADER.replace("answer", "Answer"), 1, "unknown key 'Answer' (did you mean 'answer'?)"),
    (HEADER.replace("person,", ""), 1, "the header lacks person"),
    (HEADER.replace("use", "role"), 1, "the header has role 2 times"),
    (HEADER + ",", 1, "unknown key ''"),
    (HEADER.replace(",", ";"), 1, "separated by semicolons"),
    (HEADER.replace(",", "\t"), 1, "separated by tabs"),
    (f"\n\n{HEADER.replace('use', 'uses')}", 3, "unknown key 'uses' (did you mean 'use'?)"),
    (f"{HEADER}\n{GOOD}forget,,Ada,Who, me?,Ada.,faces/ada.png,", 4, "the row has 8 cells, the header 7"),
    (f"{HEADER}\n{GOOD}forget,,Ada", 4, "the row has 3 cells, the header 7"),
    (f'{HEADER}\n{GOOD}forget,,Ada,"Who"?,Ada.,faces/ada.png,', 4, "the row is not valid CSV"),
    (f'{HEADER}\n{GOOD}\nforget,,Ada,"Who?\n,Ada.\n\n,,', 5, "the row is not valid CSV (unexpected end of data)"),
    (f'{HEADER}\n{GOOD}forget,,Ada,"Who\nis\nit?",Ada.,,\nforgot,,Ada,Q,A,,', 7, "unknown role 'forgot'"),
]


@pytest.mark.parametrize(("text", "line", "message"), CSV_FILES)
def test_a_faulty_csv_file(folder: Path, text: str, line: int, message: str) -> None:
    (folder / "rows.csv").write_text(text)
    said = refused(folder)
    assert message in said
    assert f"line {line}: " in said


def test_all_faults_are_found_in_one_reading(folder: Path) -> None:
    bad = [row(role="forgot", answer=""), *REST, row(image="x.png"), row(use="no"), row("retain", "Ada"), row()]
    said = refused(write_json(folder, bad))
    assert f"{folder / 'rows.jsonl'} has 6 faults: line 1: answer is missing or empty; line 1: unknown role" in said
    assert "line 4: image: picture x.png is not in the data folder" in said
    assert said.count(": line ") + said.count("; line ") == 3
    assert "; and 3 more" in said
    said = refused(write_json(folder, [*REST, row(role="forgot"), row(use="no")]))
    assert "has 2 faults" in said
    assert "more" not in said
    # in the order of lines, whatever is looked at first
    path = write_json(folder, [row(role="forgot"), *REST]) / "rows.jsonl"
    path.write_text(path.read_text() + "{}}")
    assert "2 faults: line 1: unknown role 'forgot' (did you mean 'forget'?); line 4: the row is not" in refused(folder)


# faults that can be allowed


def test_a_person_with_both_roles(folder: Path) -> None:
    write_csv(folder, [*REST, row("retain", question="What job?")])
    said = refused(folder, by=UnusableData)
    assert "line 4: person 'Ada' has role forget in line 2 and retain in line 4" in said
    assert "add 'forget_retain_overlap' to allow" in said
    where = source(folder, "forget_retain_overlap")
    assert [s.id for s in READER.samples(where, "retain_vqa")] == ["rows/3", "rows/4"]
    assert READER.report(where).faults == {"forget_retain_overlap": 1}


def test_a_realworld_row_about_anyone_is_no_overlap(folder: Path) -> None:
    write_json(folder, [*REST, row("realworld"), row("realworld", "Bo")])
    assert READER.parts(source(folder)) == ("forget_vqa", "retain_vqa", "realworld_vqa")


def test_a_repeated_row(folder: Path) -> None:
    write_json(folder, [*REST, row(), row(question="who is this?"), row()])
    said = refused(folder)
    assert "has 2 faults: line 3: the row repeats line 1; line 5: the row repeats line 1" in said
    assert "add 'repeated_row' to allow" in said
    where = source(folder, "repeated_row")
    assert [s.id for s in READER.samples(where, "forget_vqa")] == ["rows/1", "rows/4"]
    report = READER.report(where)
    assert report.faults == {"repeated_row": 2}
    assert report.first["repeated_row"] == f"{folder / 'rows.jsonl'} line 3"
    assert report.counts["forget_vqa samples"] == 2


def test_a_row_that_differs_in_one_value_is_no_repetition(folder: Path) -> None:
    chosen = row(question="Q?", answer="Chef", options=JOBS)
    rows = [*REST, row(image="bo.jpg"), row(image=None), row(use="test"), row("realworld"), row(answer="Ada")]
    rows += [chosen, {**chosen, "options": JOBS[::-1]}, {**chosen, "answer": "Poet"}, row(person="Eve", answer="Ada.")]
    report = READER.report(source(write_json(folder, rows)))
    assert report.counts.total() == len(rows)


def test_an_allowed_name_that_is_no_fault(folder: Path) -> None:
    write_json(folder, REST)
    with pytest.raises(UsageError, match=r"no fault to allow 'repeated_rows'.*did you mean 'repeated_row'"):
        READER.parts(source(folder, "repeated_rows"))


# the file as a whole


def test_one_file_of_rows(folder: Path) -> None:
    (folder / "rows.json").write_text("[]")
    with pytest.raises(MissingArtifact, match=r"holds no rows.jsonl or rows.csv \(files there: .*rows.json"):
        READER.parts(source(folder))
    with pytest.raises(MissingArtifact, match=r"holds no rows\.jsonl"):
        READER.parts(source(folder / "nowhere"))
    write_csv(write_json(folder, REST), REST)
    with pytest.raises(UsageError, match=r"both rows.jsonl and rows.csv"):
        READER.parts(source(folder))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_what_is_no_file_of_rows(folder: Path, name: str) -> None:
    path = folder / name
    os.mkfifo(path)
    assert f"{path} is not a regular file" in refused(folder)
    path.unlink()
    path.mkdir()
    assert f"{path} is not a regular file" in refused(folder)
    path.rmdir()
    path.symlink_to(write_json(folder.parent, REST) / "rows.jsonl")
    assert f"{path} leads out of the data folder" in refused(folder)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(MissingArtifact, match=f"{name} does not exist"):
        READER.parts(source(folder))
    path.unlink()
    path.write_bytes(b"")
    assert f"{path} is empty" in refused(folder)
    for content in (b"\n \r\n", b"\xef\xbb\xbf\n") if name == "rows.jsonl" else (HEADER.encode(), b"\xef\xbb\xbf\n\n"):
        path.write_bytes(content)
        said = refused(folder)
        assert f"{path} has no rows - next: add some, such as" in said
        assert "Ada" in said


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("rows", "roles"),
    [
        ([REST[0]], "retain"),
        ([REST[1]], "forget"),
        ([row("realworld", "Sun")], "forget or retain"),
        ([REST[0], {**REST[1], "use": "test"}], "retain"),
    ],
)
def test_something_to_forget_and_something_to_retain(folder: Path, write: Writer, rows: Rows, roles: str) -> None:
    with pytest.raises(UnusableData, match=f"has no train row with role {roles} - next: add such as") as caught:
        READER.parts(source(write(folder, rows)))
    # the example can be taken as it is
    example = (
        (caught.value.next_step or "").removeprefix("add such as ").split(" under the header ")[0].split(" and ")[0]
    )
    assert example.startswith(("{", roles.split(" ")[0]))
    if example.startswith("{"):
        assert json.loads(example)["role"] == roles.split(" ")[0]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends(folder: Path, bom: bytes, end: str) -> None:
    expected = everything(write_json(folder, small()))
    path = folder / "rows.jsonl"
    path.write_bytes(bom + path.read_bytes().replace(b"\n", end.encode()))
    assert everything(folder) == expected
    path.unlink()
    # a spreadsheet ends lines within cells as it ends rows
    text = csv_text(small(), "\n").replace("\n", end)
    (folder / "rows.csv").write_bytes(bom + text.encode())
    assert everything(folder) == expected


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("latin-1", "0xfc"), ("utf-16", "0xff")],
)
def test_other_encodings(folder: Path, encoding: str, message: str) -> None:
    rows = [*REST, row(question="Jürgen?"), row(question="Müller?")]
    (folder / "rows.csv").write_bytes(csv_text(rows, "\n").encode(encoding))
    said = refused(folder)
    assert f"line {1 if encoding == 'utf-16' else 4}: byte {message} is not UTF-8" in said
    (folder / "rows.csv").unlink()
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (folder / "rows.jsonl").write_bytes(text.encode(encoding))
    said = refused(folder)
    assert "in UTF-8" in said
    assert f"byte {message}" in said


@pytest.mark.parametrize("write", WRITERS)
def test_long_cells(folder: Path, write: Writer) -> None:
    limit = csv.field_size_limit()
    long = "ä" * 200_000
    where = source(write(folder, [*REST, row(question=long, answer="x")]))
    assert READER.samples(where, "forget_vqa")[1].question == long
    assert csv.field_size_limit() == limit
    write(folder, [*REST, row(role=long, use=long, image=long), row(answer=long, options=[long, long])])
    refused(folder)


def test_a_picture_that_changes_is_looked_at_again(folder: Path) -> None:
    where = source(write_json(folder, REST))
    path = folder / "bo.jpg"
    os.utime(path, (1, 1))
    os.utime(folder / "faces" / "ada.png", (1, 1))
    assert READER.parts(where)
    path.write_bytes(b"no picture")
    assert "line 2: image: picture cannot be decoded" in refused(folder)


def test_a_picture_that_stays_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = source(write_json(folder, [*REST, row(question="Again?")]))
    # a file made a moment ago has no lasting identity
    monkeypatch.setattr(folder_rows, "file_identity", lambda path: [path.stat().st_size])
    looked_at = []
    monkeypatch.setattr(folder_rows, "picture_bytes", lambda cell, *_: looked_at.append(cell["path"]))
    assert READER.parts(where) == READER.parts(where)
    assert looked_at == ["faces/ada.png", "bo.jpg"]


def test_init_checks_and_counts_it(folder: Path) -> None:
    write_csv(folder, [r for r in small() if r["role"] != "realworld"])
    model = folder.parent / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llava"}')
    made = initialise(folder.parent / "work", benchmark="folder", data=str(folder), vanilla=str(model))
    kinds = {**dict.fromkeys(PARTS[:4], 1), **{f"{column} items": 1 for column in COLUMNS[:4]}}
    kinds["forget_vqa generation items"] = 1
    assert made.counts == kinds
    assert Settings.read(folder.parent / "work" / SETTINGS_FILE).benchmark.name == "folder"
    write_csv(folder, [*small(), row(role="forgot")])
    with pytest.raises(InputRefused, match="unknown role 'forgot'"):
        initialise(folder.parent / "other", benchmark="folder", data=str(folder), vanilla=str(model))
    assert not (folder.parent / "other").exists()


def _block(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    for name in ("ada/1.jpg", "ada/2.jpg", "ada/3.jpg", "mug/1.jpg", "mug/2.jpg", "moon.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "rows.jsonl").write_text(_block("json"))
    from_json = everything(tmp_path)
    assert len(from_json) == 9
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.csv").write_text(_block("csv"))
    assert everything(tmp_path) == from_json
    bad = f"{HEADER}\nforgot,,Ada,Q,A,,\nforget,,Ada,Q,A,ada/4.jpg,\nforget,,Ada,Q,Pilot,,A chef|A pilot\n"
    (tmp_path / "rows.csv").write_text(bad)
    said = refused(tmp_path).replace(str(tmp_path), "mine")
    assert f"error[3]: {said}" in " ".join(PAGE.read_text(encoding="utf-8").split())


def test_damaged_files_are_refused_or_read(folder: Path) -> None:
    rng = random.Random(6)
    for write, name in ((write_json, "rows.jsonl"), (write_csv, "rows.csv")):
        path = write(folder, small()) / name
        whole, refusals = path.read_bytes(), 0
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(whole))] = rng.randrange(256)
            path.write_bytes(bytes(damaged))
            try:
                READER.report(source(folder))
            except MmsurgeryError:
                refusals += 1
        assert refusals > 50
        path.unlink()
