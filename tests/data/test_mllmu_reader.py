"""The MLLMU-Bench reader on files in the published layout, with the traps that layout has."""

from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsurgery.data import tables
from mmsurgery.data.benchmark import Source
from mmsurgery.data.mllmu import MLLMUBench
from mmsurgery.data.survey import survey
from mmsurgery.errors import InputRefused, MmsurgeryError, UnusableData, UsageError
from mmsurgery.portraits.files import write_data

READER = MLLMUBench()
VQA = "Image_Textual_Questions"
QA = "Pure_Text_Questions"


def source(folder: Path, *allow: str) -> Source:
    return Source(folder, 5, {"allow": allow})


def question(data: Any, place: int = 0, config: str = "forget_5", kind: str = VQA) -> dict[str, Any]:
    found: dict[str, Any] = data.rows[config][0]["Classification_Task"][kind][place]
    return found


def test_counts_follow_from_the_rows(data: Any) -> None:
    report = READER.report(source(data.write()))
    assert report.counts == {
        # two pairs a person: the odd object is skipped
        "forget_vqa samples": 2 * 2,
        "retain_vqa samples": 3 * 2,
        # two flat facts a person; the list of fun facts gives no pair
        "forget_qa samples": 2 * 2,
        "retain_qa samples": 3 * 2,
        "retain_image_qa samples": 3 * 2,
        "forget_vqa items": 2 * 2,
        "forget_qa items": 2 * 3,
        "retain_vqa items": 3 * 2,
        "retain_qa items": 3 * 3,
        "realworld_vqa items": 2 * 2,
        "realworld_qa items": 2 * 3,
        # forget people only, every one of three pictures
        "test_vqa items": 2 * 3 * 2,
    }
    assert not report.faults
    # one odd object and one list of fun facts a person, counted once however many parts need them
    assert report.notes["additional"] == 2 + 3
    assert report.notes["unresolved_text"] == 2 + 3


def test_ids_stay_text_and_celebrities_are_other_people(data: Any) -> None:
    folder = source(data.write())
    forget = {item.person for item in READER.items(folder, "forget_vqa")}
    stars = {item.person for item in READER.items(folder, "realworld_vqa")}
    assert forget == {"person/007", "person/412"}
    assert stars == {"celebrity/007", "celebrity/999"}


def test_a_sample_and_an_item_carry_what_the_row_says(data: Any) -> None:
    folder = source(data.write())
    sample = READER.samples(folder, "forget_vqa")[1]
    assert (sample.id, sample.question) == ("forget_5/007/0/metadata/1", "What does this individual do?")
    assert sample.answer == "The individual is a harbour pilot."
    assert sample.image is not None
    assert sample.image.getpixel((0, 0)) == (7, 0, 7)
    item = READER.items(folder, "forget_vqa")[1]
    assert item.id == "forget_5/007/0/classification/image/1"
    assert (item.gold, list(item.options or {})) == ("A", ["A", "B", "C", "D"])
    assert READER.items(folder, "forget_qa")[0].image_bytes is None
    cloze = READER.items(folder, "forget_vqa", "cloze")
    assert [(i.question, i.gold, i.options) for i in cloze] == [("Earns __ a year.", "$71,000", None)] * 2
    assert [i.question for i in READER.items(folder, "forget_qa", "generation")] == ["Tell about Pure_Text"] * 2


def test_ids_are_unique_within_parts_and_columns(data: Any) -> None:
    folder = source(data.write())
    for part in READER.parts(folder):
        ids = [s.id for s in READER.samples(folder, part)]
        assert len(set(ids)) == len(ids)
    for column in READER.columns(folder):
        ids = [i.id for i in READER.items(folder, column)]
        assert len(set(ids)) == len(ids)


def test_every_picture_of_a_test_row_is_asked(data: Any) -> None:
    items = READER.items(source(data.write()), "test_vqa")
    assert len({item.image_sha256 for item in items}) == 2 * 3
    assert {item.person for item in items} == {"person/007", "person/412"}


def test_joining_ft_data_equals_the_split_repository(data: Any) -> None:
    joined = [READER.samples(source(data.write()), part) for part in ("forget_vqa", "retain_vqa")]
    data.copy_to_split_repository()
    del data.rows["ft_Data"]
    folder = data.write()
    for file in (folder / "ft_Data").iterdir():
        file.unlink()
    (folder / "ft_Data").rmdir()
    split = [READER.samples(source(folder), part) for part in ("forget_vqa", "retain_vqa")]
    assert split == joined
    assert len(split[0]) == 4


def test_metadata_in_the_split_folder_itself_is_used(data: Any) -> None:
    del data.rows["ft_Data"]
    for row in data.rows["forget_5"]:
        row["metadata"] = json.dumps([{"ID": row["ID"], "Question": "Own?", "Answer": "Yes."}])
    assert [s.question for s in READER.samples(source(data.write()), "forget_vqa")] == ["Own?", "Own?"]


def test_ids_come_from_metadata_where_the_column_is_missing(data: Any) -> None:
    for row in data.rows["ft_Data"]:
        del row["ID"]
    assert {s.person for s in READER.samples(source(data.write()), "forget_vqa")} == {"person/007", "person/412"}


def test_missing_metadata_names_both_repositories(data: Any) -> None:
    del data.rows["ft_Data"]
    with pytest.raises(InputRefused) as caught:
        READER.samples(source(data.write()), "forget_vqa")
    assert "metadata" in caught.value.what
    assert "MLLMMU/MLLMU-Bench" in str(caught.value)
    assert "MLLMMU/baseline_train_split" in str(caught.value)


def test_training_rows_where_evaluation_rows_belong(data: Any) -> None:
    data.rows["forget_5"] = [row for row in data.rows["ft_Data"] if row["ID"] in ("007", "412")]
    with pytest.raises(InputRefused, match="lacks column Classification_Task"):
        READER.items(source(data.write()), "forget_vqa")


def test_a_person_missing_from_ft_data(data: Any) -> None:
    data.rows["ft_Data"] = [row for row in data.rows["ft_Data"] if row["ID"] != "412"]
    with pytest.raises(InputRefused, match=r"1 people of forget_5 are not in .*ft_Data.*412"):
        READER.samples(source(data.write()), "forget_vqa")


def test_a_person_without_questions_is_reported_not_repaired(data: Any) -> None:
    data.rows["retain_95"][1]["Classification_Task"] = {VQA: [], QA: None}
    report = READER.report(source(data.write()))
    assert report.counts["retain_vqa items"] == 2 * 2
    assert report.counts["retain_qa items"] == 2 * 3
    assert report.without_questions == ["retain_vqa 010", "retain_qa 010"]


def _set(place: int, **changes: Any) -> Any:
    return lambda data: question(data, place).update(changes)


def _option(letter: str, text: str | None) -> Any:
    return lambda data: question(data)["Options"].update({letter: text})


def _cell(column: str, value: Any, config: str = "forget_5") -> Any:
    return lambda data: data.rows[config][0].update({column: value})


def _damaged(data: Any) -> dict[str, Any]:
    """The picture with one bit of its pixels changed: the format stays whole, a checksum does not."""
    content = bytearray(data.rows["forget_5"][0]["image"]["bytes"])
    content[content.index(b"IDAT") + 8] ^= 1
    return {"bytes": bytes(content), "path": None}


ITEM_FAULTS = [
    ("gold_not_an_option", _set(0, Correct_Answer="E"), 1),
    ("empty_question", _set(0, Question=None), 1),
    ("empty_question", _set(0, Correct_Answer=None), 1),
    ("empty_option", _option("C", None), 1),
    ("empty_option", _option("C", "  "), 1),
    ("gold_twice", _option("C", "Harbour pilot"), 1),
    ("bad_picture", _cell("image", {"bytes": b"no picture", "path": None}), 2),
    ("bad_picture", _cell("image", None), 2),
    ("bad_picture", lambda data: data.rows["forget_5"][0].update(image=_damaged(data)), 2),
    ("bad_picture", _cell("image", {"bytes": None, "path": None}), 2),
    ("bad_picture", _cell("image", {"bytes": None, "path": "../../../etc/hostname"}), 2),
    ("bad_picture", _cell("image", {"bytes": None, "path": "http://127.0.0.1/x.png"}), 2),
    ("repeated_row", lambda data: data.rows["forget_5"].append(data.rows["forget_5"][0]), 2),
]


@pytest.mark.parametrize(("name", "change", "lost"), ITEM_FAULTS)
def test_faulty_items_are_refused_or_left_out_by_name(data: Any, name: str, change: Any, lost: int) -> None:
    change(data)
    folder = data.write()
    with pytest.raises(InputRefused, match=r"first .*forget_5/train-00000-of-00001.parquet row \d") as caught:
        READER.items(source(folder), "forget_vqa")
    assert f"'{name}'" in str(caught.value)
    kept = READER.items(source(folder, name), "forget_vqa")
    assert len(kept) == sum(len(row["Classification_Task"][VQA]) for row in data.rows["forget_5"]) - lost


@pytest.mark.parametrize(
    ("metadata", "name", "kept"),
    [
        ("{not json", "bad_metadata", 2),
        ('{"ID": "007"}', "bad_metadata", 2),
        ('[{"ID": "007", "ID": "412"}]', "bad_metadata", 2),
        ("", "bad_metadata", 2),
        ('[{"Question": "Q?", "Answer": null}, {"Question": "Q?", "Answer": "A."}]', "empty_pair", 3),
    ],
)
def test_faulty_metadata(data: Any, metadata: str, name: str, kept: int) -> None:
    next(row for row in data.rows["ft_Data"] if row["ID"] == "007")["metadata"] = metadata
    folder = data.write()
    with pytest.raises(InputRefused, match="ft_Data"):
        READER.samples(source(folder), "forget_vqa")
    assert len(READER.samples(source(folder, name), "forget_vqa")) == kept


def test_metadata_of_another_person_is_no_training(data: Any) -> None:
    facts = next(row for row in data.rows["ft_Data"] if row["ID"] == "412")["metadata"]
    for row in data.rows["ft_Data"]:
        row["metadata"] = facts
    folder = data.write()
    with pytest.raises(
        InputRefused, match=r"6 times .* of another person .*ft_Data.* row 0: metadata object 0"
    ) as caught:
        READER.samples(source(folder), "retain_vqa")
    assert "ID '412', the row is of '001'" in caught.value.what
    assert "add 'metadata_of_other' to allow" in str(caught.value)
    allowed = source(folder, "metadata_of_other")
    assert [s.person for s in READER.samples(allowed, "forget_vqa")] == ["person/412", "person/412"]
    assert READER.report(allowed).faults == {"metadata_of_other": 2 * 4}
    with pytest.raises(UnusableData, match=r"retain_vqa of .* is empty"):
        READER.samples(allowed, "retain_vqa")


@pytest.mark.parametrize("spelled", ["7", 7, " 007 ", "0007", None])
def test_metadata_spells_an_id_with_or_without_zeros(data: Any, spelled: Any) -> None:
    row = next(row for row in data.rows["ft_Data"] if row["ID"] == "007")
    row["metadata"] = json.dumps([{"ID": spelled, "Question": "Q?", "Answer": "A."}])
    found = READER.samples(source(data.write()), "forget_vqa")
    assert [s.answer for s in found if s.person == "person/007"] == ["A."]


@pytest.mark.parametrize("text", ["Earns a year.", "Earns __ a __."])
def test_cloze_needs_one_blank(data: Any, text: str) -> None:
    data.rows["forget_5"][0]["Mask_Task"][0]["Question"] = text
    folder = data.write()
    with pytest.raises(InputRefused, match="cloze"):
        READER.items(source(folder), "forget_vqa", "cloze")
    assert len(READER.items(source(folder, "cloze_blank"), "forget_vqa", "cloze")) == 1


def test_columns_without_open_questions_have_none(data: Any) -> None:
    for row in data.rows["forget_5"]:
        row["Generation_Task"] = []
        del row["Mask_Task"]
    folder = source(data.write())
    assert READER.items(folder, "forget_vqa", "generation") == []
    assert READER.items(folder, "forget_vqa", "cloze") == []
    assert len(READER.items(folder, "retain_vqa", "cloze")) == 3
    assert READER.items(folder, "retain_qa", "truth") == []


def test_type_in_other_case(data: Any) -> None:
    data.rows["forget_5"][0]["Generation_Task"][0]["Type"] = "image_textual"
    with pytest.raises(InputRefused, match="neither Image_Textual nor Pure_Text"):
        READER.items(source(data.write()), "forget_vqa", "generation")


def test_a_picture_by_path_below_the_data_folder(data: Any) -> None:
    cell = data.rows["forget_5"][0]["image"]
    data.rows["forget_5"][0]["image"] = {"bytes": None, "path": "faces/007.png"}
    folder = data.write()
    (folder / "faces").mkdir()
    (folder / "faces" / "007.png").write_bytes(cell["bytes"])
    assert READER.items(source(folder), "forget_vqa")[0].image_bytes == cell["bytes"]
    outside = folder.parent / "outside.png"
    (folder / "faces" / "007.png").rename(outside)
    (folder / "faces" / "007.png").symlink_to(outside)
    with pytest.raises(InputRefused, match="leads out of the data folder"):
        READER.items(source(folder), "forget_vqa")


def test_a_picture_bomb(data: Any) -> None:
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    data.rows["forget_5"][0]["image"]["bytes"] = b"\x89PNG\r\n\x1a\n" + b"".join(packed)
    with pytest.raises(InputRefused, match="picture"):
        READER.items(source(data.write()), "forget_vqa")


def test_columns_of_another_type(data: Any) -> None:
    del data.rows["ft_Data"], data.rows["Retain_Set"], data.rows["Test_Set"], data.rows["retain_95"]
    for row in data.rows["forget_5"]:
        row["ID"] = int(row["ID"])
    with pytest.raises(InputRefused, match="column ID is int64, should be string") as caught:
        READER.items(source(data.write({"ID": pa.int64()})), "forget_vqa")
    assert caught.value.next_step == "save the column as string, IDs with their leading zeros"


def test_columns_of_another_type_say_what_to_do(data: Any) -> None:
    folder = data.write()
    path = folder / "ft_Data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pictures = pa.array([row["image"]["bytes"] for row in table.to_pylist()], pa.binary())
    for column, cells, said, step in (
        ("image", pictures, "binary, should be struct", "save each picture as a struct of bytes and path, as the data"),
        ("metadata", table["metadata"].dictionary_encode(), "dictionary<values=string", "save the column as string"),
    ):
        pq.write_table(table.set_column(table.schema.names.index(column), column, cells), path)
        with pytest.raises(InputRefused, match=f"column {column} is {said}") as caught:
            READER.samples(source(folder), "forget_vqa")
        assert caught.value.next_step is not None
        assert caught.value.next_step.startswith(step)


def test_a_column_that_stands_twice(data: Any) -> None:
    folder = data.write()
    path = folder / "ft_Data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("metadata", table["metadata"]), path)
    with pytest.raises(InputRefused, match="has 2 columns metadata - next: keep one of them"):
        READER.samples(source(folder), "forget_vqa")


def test_an_empty_id_names_the_row(data: Any) -> None:
    data.rows["forget_5"][1]["ID"] = None
    with pytest.raises(InputRefused, match=r"row 1: column ID is empty"):
        READER.items(source(data.write()), "forget_vqa")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"PAR1 but nothing else", "cannot be read as parquet"),
    ],
)
def test_other_kinds_of_file(data: Any, content: bytes, message: str) -> None:
    folder = data.write()
    (folder / "forget_5" / "train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(InputRefused, match=message):
        READER.items(source(folder), "forget_vqa")


SHARDS = ("train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet")


def _sharded(data: Any, *names: str) -> Path:
    """The data with the three rows of retain_95 in files of one row each, by these names."""
    folder = Path(data.write())
    whole = folder / "retain_95" / "train-00000-of-00001.parquet"
    table = pq.read_table(whole)
    whole.unlink()
    for number, name in enumerate(names):
        pq.write_table(table.slice(number, 1), folder / "retain_95" / name)
    return folder


@pytest.mark.parametrize("digest", ["", "-0f0a"])
@pytest.mark.parametrize("lacking", range(3))
def test_a_lacking_shard_is_refused(data: Any, lacking: int, digest: str) -> None:
    names = [name.replace(".parquet", f"{digest}.parquet") for name in SHARDS if name != SHARDS[lacking]]
    folder = _sharded(data, *names)
    said = rf"retain_95 lacks train-0000{lacking}-of-00003, of 3 files it has 2 - next: download it again"
    for read in (READER.report, lambda s: READER.items(s, "retain_vqa"), lambda s: READER.samples(s, "retain_vqa")):
        with pytest.raises(InputRefused) as caught:
            read(source(folder))
        assert said in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        SHARDS,
        [name.replace(".parquet", f"-{number}f0a.parquet") for number, name in enumerate(SHARDS)],
        ["a-of-b.parquet", "test-00000-of-00001.parquet", "train-00000-of-00001.parquet"],
        ["one.parquet", "two.parquet", "train-0-of-1.parquet"],
    ],
)
def test_shards_that_are_all_there(data: Any, names: Any) -> None:
    assert len(READER.items(source(_sharded(data, *names)), "retain_vqa")) == 2 * 3


def test_hidden_files_are_left_out(data: Any) -> None:
    folder = data.write()
    whole = READER.items(source(folder), "forget_vqa")
    hidden = folder / "forget_5" / "._train-00000-of-00001.parquet"
    hidden.write_bytes(b"\0\x05\x16\x07")
    assert READER.items(source(folder), "forget_vqa") == whole
    (folder / "forget_5" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(UsageError, match="forget_5 holds no parquet files"):
        READER.items(source(folder), "forget_vqa")


def test_a_file_without_rows(data: Any) -> None:
    folder = data.write()
    path = folder / "forget_5" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(InputRefused, match="has no rows"):
        READER.items(source(folder), "forget_vqa")


def test_declared_size_out_of_proportion(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data.rows["forget_5"][0]["biography"] = "x" * (8 << 20)
    folder = data.write()
    monkeypatch.setattr(tables, "_MAX_DECLARED", 4 << 20)
    with pytest.raises(InputRefused, match=r"forget_5.* declares 8,\d+,\d+ bytes in a file of"):
        READER.samples(source(folder), "forget_qa")


def test_damaged_files_are_refused_whatever_is_broken(data: Any) -> None:
    folder = data.write()
    path = folder / "forget_5" / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    expected = READER.items(source(folder), "forget_vqa")
    rng = random.Random(5)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            assert READER.items(source(folder), "forget_vqa") == expected
        except MmsurgeryError:
            refused += 1
    assert refused > 20


def test_a_changed_letter_fails_the_page_checksum(data: Any) -> None:
    folder = data.write()
    path = folder / "forget_5" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=False, write_page_checksum=True)
    assert READER.items(source(folder), "forget_vqa")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"What would they sail?", b"What would they fail?"))
    with pytest.raises(InputRefused, match="checksum"):
        READER.items(source(folder), "forget_vqa")


def test_a_training_row_that_stands_twice(data: Any) -> None:
    data.rows["ft_Data"] += [row for row in data.rows["ft_Data"] if row["ID"] == "412"]
    folder = data.write()
    with pytest.raises(InputRefused, match="1 times row that stands twice"):
        READER.samples(source(folder), "forget_vqa")
    assert len(READER.samples(source(folder, "repeated_row"), "forget_vqa")) == 4


def test_unknown_names(data: Any) -> None:
    folder = data.write()
    with pytest.raises(UsageError, match=r"no part 'forget_vaq'.*did you mean 'forget_vqa'"):
        READER.samples(source(folder), "forget_vaq")
    with pytest.raises(UsageError, match="no column"):
        READER.items(source(folder), "forget_perception")
    with pytest.raises(UsageError, match="no task"):
        READER.items(source(folder), "forget_vqa", "essay")
    with pytest.raises(UsageError, match=r"no fault to allow 'bad_pictures'.*did you mean 'bad_picture'"):
        READER.items(source(folder, "bad_pictures"), "forget_vqa")
    with pytest.raises(UsageError, match=r"forget_10 holds no parquet files.*forget_5"):
        READER.items(Source(folder, 10), "forget_vqa")


def test_a_missing_split_is_looked_for_among_the_folders_of_the_data(data: Any) -> None:
    del data.rows["forget_5"]
    folder = data.write()
    (folder / ".cache").mkdir()
    with pytest.raises(UsageError) as caught:
        survey(READER, source(folder))
    assert caught.value.what == f"{folder / 'forget_5'} holds no parquet files"
    assert str(caught.value).endswith("folders there: Retain_Set, Test_Set, ft_Data, retain_95")


def test_folders_one_level_deeper_are_named(data: Any) -> None:
    folder = data.write()
    outer = folder.parent / "copy"
    outer.mkdir()
    folder.rename(outer / "data")
    with pytest.raises(UsageError) as caught:
        survey(READER, source(outer))
    assert caught.value.what == f"{outer / 'forget_5'} holds no parquet files"
    assert (
        caught.value.next_step == f"forget_5 lies one level deeper, in data: give {outer / 'data'} as the data folder"
    )


def test_columns_follow_the_folders(data: Any) -> None:
    del data.rows["Retain_Set"], data.rows["Test_Set"]
    assert READER.columns(source(data.write())) == ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")


def test_text_pairs_from_biographies(data: Any) -> None:
    pairs = [(s.question, s.answer) for s in READER.samples(source(data.write()), "forget_qa")]
    assert pairs[:2] == [
        ("What is the place of birth of Oda Varnell?", "The place of birth of Oda Varnell is Tromso, Norway."),
        ("What is the annual salary of Oda Varnell?", "The annual salary of Oda Varnell is $71,000."),
    ]
    assert all(s.image_bytes is None for s in READER.samples(source(data.write()), "forget_qa"))


def test_text_pairs_from_metadata_where_a_biography_has_only_the_name(data: Any) -> None:
    data.rows["forget_5"][0]["biography"] = json.dumps({"Name": "Oda Varnell"})
    samples = READER.samples(source(data.write()), "forget_qa")
    named = [(s.question, s.answer) for s in samples if s.person == "person/007"]
    # the question for the name itself is unresolved
    assert named == [("What does Oda Varnell do?", "Oda Varnell is a harbour pilot.")]
    assert len(samples) == 1 + 2


def test_text_part_without_any_name(data: Any) -> None:
    for row in data.rows["forget_5"]:
        row["biography"] = None
    # two people, two pairs each
    with pytest.raises(UnusableData, match="4 text pairs could not be resolved"):
        READER.samples(source(data.write()), "forget_qa")


def test_retain_pictures_with_text_questions(data: Any) -> None:
    folder = source(data.write())
    texts = READER.samples(folder, "retain_qa")
    both = READER.samples(folder, "retain_image_qa")
    portraits = {s.person: s.image_bytes for s in READER.samples(folder, "retain_vqa")}
    assert [(s.question, s.answer, s.image_bytes) for s in both] == [
        (s.question, s.answer, portraits[s.person]) for s in texts
    ]


def test_a_file_that_starts_as_something_else_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 0)
    file = next((tmp_path / "data/ft_Data").iterdir())
    file.write_bytes(b"\x1f\x8b\x08\x31" + file.read_bytes()[4:])
    with pytest.raises(InputRefused, match="is no parquet file"):
        MLLMUBench().samples(Source(tmp_path / "data", 10), "forget_vqa")
