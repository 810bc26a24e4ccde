"""The CLEAR reader on files in the published layout, with the traps that layout has."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clear_files import PICTURE, PUBLISHED, ClearFiles, text_row

from mmsurgery.data import clear_items
from mmsurgery.data.benchmark import Benchmark, Source, benchmark
from mmsurgery.data.clear import Clear
from mmsurgery.data.clear_items import CAPTION_QUESTIONS, TRUTH
from mmsurgery.data.clear_people import authors
from mmsurgery.data.leakage import check_overlap, check_text
from mmsurgery.data.samples import Item
from mmsurgery.data.survey import survey
from mmsurgery.data.tables import read_rows
from mmsurgery.errors import InputRefused, UnusableData, UsageError

READER = Clear()
TASKS = {
    "forget_vqa": ("classification", TRUTH),
    "forget_qa": ("generation",),
    "retain_vqa": ("classification", TRUTH),
    "retain_qa": ("generation",),
    "realworld_vqa": ("classification", TRUTH),
    "realface_vqa": ("classification", TRUTH),
    "forget_caption": ("generation", TRUTH),
    "retain_caption": ("generation", TRUTH),
}


@pytest.fixture
def clear(tmp_path: Path) -> ClearFiles:
    return ClearFiles(tmp_path / "forget" / "CLEAR")  # a path that holds "forget" decides nothing


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ClearFiles(tmp_path_factory.mktemp("published"), PUBLISHED).write()


def source(folder: Path, *allow: str, forget: int = 5, text: str = "held-out") -> Source:
    return Source(folder, forget, {"allow": allow, "saliency_text": text})


def everything(where: Source) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {part: READER.samples(where, part) for part in READER.parts(where)}
    for column, tasks in TASKS.items():
        found |= {f"{column} {task}": READER.items(where, column, task) for task in tasks}
    return found


def options(item: Item) -> dict[str, str]:
    assert item.options is not None
    return item.options


def test_the_reader_keeps_the_protocol() -> None:
    assert isinstance(READER, Benchmark)
    assert benchmark("clear").name == READER.name == "clear"


# counts


@pytest.mark.parametrize(
    ("forget", "pictures", "perturbed", "retain"), [(1, 35, 35, 3735), (5, 188, 188, 3582), (10, 379, 378, 3391)]
)
def test_the_published_size_reads_without_deviations(
    published: Path, forget: int, pictures: int, perturbed: int, retain: int
) -> None:
    report = READER.report(source(published, forget=forget))
    assert report.deviations == []
    assert report.faults == {}
    assert report.notes["unresolved_author"] == 0
    # half of the text is measured, the other half scored
    expected = {
        "forget_vqa samples": pictures,
        "forget_qa samples": 20 * forget,
        "retain_vqa samples": retain,
        "retain_qa samples": 20 * (100 - forget),
        "forget_vqa classification items": perturbed,
        "forget_qa generation items": 20 * forget,
        "retain_vqa classification items": 395,
        "retain_qa generation items": 20 * (100 - forget),
        "realworld_vqa classification items": 367,
        "realface_vqa classification items": 151,
        "forget_caption generation items": perturbed,
        "retain_caption truth items": 395,
        f"forget{forget:02}+tofu rows": pictures + 40 * forget,
        "full+tofu rows": 7768,
    }
    assert {name: report.counts[name] for name in expected} == expected
    assert report.notes["forget_vqa items with 6 options"] == perturbed
    assert report.notes["realface_vqa items with 4 options"] == 151


def test_21_configs_with_the_published_columns(published: Path) -> None:
    folders = sorted(path.name for path in published.iterdir())
    assert len(folders) == 21
    shards = {name: len(list((published / name).iterdir())) for name in folders}
    assert shards["retain95"] == 2
    assert shards["forget05"] == 1
    schema = pq.read_schema(published / "forget05_perturbed" / "train-00000-of-00001.parquet")
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}


def test_other_counts_deviate_and_never_refuse(clear: ClearFiles) -> None:
    report = READER.report(source(clear.write()))
    assert "forget05 has 5 rows, published are 188" in report.deviations
    assert "retain95 has 12 rows, published are 3575 to 3584" in report.deviations
    assert "forget10_perturbed has 7 rows, published are 375 or 378" in report.deviations
    assert "forget05+tofu has 8 text rows, published are 200" in report.deviations
    # 21 folders, and the text rows of forget05+tofu and retain95+tofu
    assert len(report.deviations) == 21 + 2


# samples and items


def test_parts_carry_what_the_rows_say(clear: ClearFiles) -> None:
    where = source(clear.write())
    row = clear.rows["forget05"][1]
    sample = READER.samples(where, "forget_vqa")[1]
    assert (sample.id, sample.person, sample.part) == ("forget05/1", f"person/{row['name']}", "forget_vqa")
    assert (sample.answer, sample.image_bytes) == (row["caption"], row["image"]["bytes"])
    assert sample.question in CAPTION_QUESTIONS
    text = READER.samples(where, "forget_qa")[1]
    assert (text.person, text.image_bytes) == (f"person/{clear.names[-2]}", None)
    written = text_row(clear.names[-2], 2, 5)
    assert (text.question, text.answer) == (written["question"], written["answer"])


def test_recognition_asks_for_a_name_among_names(clear: ClearFiles) -> None:
    where = source(clear.write())
    for column, config in (("forget_vqa", "forget05_perturbed"), ("retain_vqa", "retain_perturbed")):
        rows = clear.rows[config]
        items = READER.items(where, column)
        assert len(items) == len(rows)
        for item, row in zip(items, rows, strict=True):
            assert item.question == "What is the name of the person in the image?"
            assert list(options(item)) == list("ABCDEF")
            assert options(item)[item.gold] == row["name"]
            assert [text for letter, text in options(item).items() if letter != item.gold] == row["perturbed_names"]
            assert (item.person, item.image_bytes) == (f"person/{row['name']}", row["image"]["bytes"])


def test_faces_and_the_world(clear: ClearFiles) -> None:
    where = source(clear.write())
    face, world = READER.items(where, "realface_vqa")[1], READER.items(where, "realworld_vqa")[1]
    assert face.question == "What is the name of the person in the image?"
    assert (face.person, options(face)[face.gold]) == ("celebrity/Star 1", "Star 1")
    assert (world.person, world.question) == ("realworld/1", "How many cars are parked in street 1?")
    assert sorted(options(world).values()) == ["Five", "None", "Three", "Two"]
    assert options(world)[world.gold] == "Two"


def test_captions_are_asked_openly(clear: ClearFiles) -> None:
    where = source(clear.write())
    items = READER.items(where, "retain_caption", "generation")
    assert [item.gold for item in items] == [row["caption"] for row in clear.rows["retain_perturbed"]]
    assert all(item.question in CAPTION_QUESTIONS and item.options is None and item.image_bytes for item in items)
    assert [i.question for i in items] == [i.question for i in READER.items(where, "retain_caption", TRUTH)]


def test_truth_items(clear: ClearFiles) -> None:
    clear.change("forget05_perturbed", 1, paraphrased_caption=None)
    where = source(clear.write())
    caption, without = READER.items(where, "forget_caption", TRUTH)[:2]
    row = clear.rows["forget05_perturbed"][0]
    wrong = {f"wrong{i}": text for i, text in enumerate(row["perturbed_captions"], 1)}
    assert options(caption) == {"true": row["caption"], "paraphrase": row["paraphrased_caption"], **wrong}
    assert caption.gold == "true"
    assert list(options(without)) == ["true", *wrong]
    name = READER.items(where, "forget_vqa", TRUTH)[0]
    assert name.question == "The name of the person on the image is "
    assert list(options(name).values()) == [row["name"], *row["perturbed_names"]]
    face, world = READER.items(where, "realface_vqa", TRUTH)[0], READER.items(where, "realworld_vqa", TRUTH)[0]
    assert (face.question, list(options(face))) == (name.question, ["true", "wrong1", "wrong2", "wrong3"])
    assert (world.question, options(world)["true"]) == ("How many cars are parked in street 0?", "Two")


def test_a_column_has_nothing_of_tasks_it_does_not_have(clear: ClearFiles) -> None:
    where = source(clear.write())
    for column in READER.columns(where):
        for task in ("classification", "cloze", "generation", TRUTH):
            assert bool(READER.items(where, column, task)) == (task in TASKS[column])


def test_ids_are_unique(clear: ClearFiles) -> None:
    for found in everything(source(clear.write())).values():
        assert len({record.id for record in found}) == len(found)


# draws


def test_draws_belong_to_the_row(published: Path) -> None:
    where = source(published, forget=10)
    questions = Counter(sample.question for sample in READER.samples(where, "retain_vqa"))
    assert set(questions) == set(CAPTION_QUESTIONS)
    # 3391 rows over nine questions
    assert min(questions.values()) > 300
    assert max(questions.values()) < 460
    letters = Counter(item.gold for item in READER.items(where, "forget_vqa"))
    assert set(letters) == set("ABCDEF")
    assert min(letters.values()) > 35


def test_draws_depend_on_nothing_read_before(clear: ClearFiles) -> None:
    where = source(clear.write())
    first = READER.items(where, "forget_vqa"), READER.samples(where, "forget_vqa")
    clear.change("forget05_perturbed", 0, perturbed_names=["Somebody"])
    clear.write()
    READER.samples(where, "retain_vqa")
    assert READER.items(where, "forget_vqa")[1:] == first[0][1:]
    assert READER.samples(where, "forget_vqa") == first[1]


# layout


def test_shards_are_read_in_order_and_change_nothing(tmp_path: Path) -> None:
    one = everything(source(ClearFiles(tmp_path / "one").write(lambda _: 1)))
    three = everything(source(ClearFiles(tmp_path / "three").write(lambda _: 3)))
    assert three == one


def test_rows_stream(tmp_path: Path) -> None:
    """A megabyte a row group; no more than a few of twenty are held at once."""
    (tmp_path / "forget05").mkdir()
    cells = [{"bytes": random.Random(n).randbytes(1 << 16), "path": None} for n in range(320)]
    table = pa.table({"image": pa.array(cells, PICTURE)})
    pq.write_table(table, tmp_path / "forget05" / "train.parquet", row_group_size=16, compression="none")
    del cells, table
    before, held = pa.total_allocated_bytes(), []
    for _ in read_rows(tmp_path, "forget05", ("image",)):
        held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 320
    assert max(held) < 5 << 20


def test_the_order_of_pictures_and_texts_changes_nothing(tmp_path: Path) -> None:
    orders = [ClearFiles(tmp_path / order, order=order) for order in ("pictures", "texts", "turns")]
    first, *others = [everything(source(files.write())) for files in orders]
    assert others == [first, first]


def test_no_sample_of_text_rows_in_picture_parts(clear: ClearFiles) -> None:
    where = source(clear.write(), text="official")
    assert len(READER.samples(where, "forget_vqa")) == len(clear.rows["forget05"])
    assert all(sample.image_bytes is not None for sample in READER.samples(where, "forget_vqa"))
    assert len(READER.samples(where, "forget_qa")) == len(clear.rows["forget05+tofu"]) - len(clear.rows["forget05"])


@pytest.mark.parametrize(("forget", "split"), [(1, "forget01"), (5, "forget05"), (10, "forget10")])
def test_every_percentage_has_its_folders(clear: ClearFiles, forget: int, split: str) -> None:
    where = source(clear.write(), forget=forget)
    people = {sample.person for sample in READER.samples(where, "forget_vqa")}
    assert people == {f"person/{row['name']}" for row in clear.rows[split]}
    assert {sample.person for sample in READER.samples(where, "forget_qa")} == people
    retain = {sample.person for sample in READER.samples(where, "retain_qa")}
    assert retain == {f"person/{name}" for name in clear.names} - people


@pytest.mark.parametrize("forget", [0, 2, 15, 50])
def test_other_percentages(clear: ClearFiles, forget: int) -> None:
    where = source(clear.write(), forget=forget)
    for call in (lambda: READER.samples(where, "forget_vqa"), lambda: READER.columns(where)):
        with pytest.raises(UsageError, match=rf"forgets {forget} %.*1, 5 or 10"):
            call()


def test_columns_follow_the_folders(clear: ClearFiles) -> None:
    assert READER.columns(source(clear.write())) == tuple(TASKS)
    for config in ("real_faces", "retain_perturbed"):
        (clear.root / config / "train-00000-of-00001.parquet").unlink()
        (clear.root / config).rmdir()
    columns = ("forget_vqa", "forget_qa", "retain_qa", "realworld_vqa", "forget_caption")
    assert READER.columns(source(clear.root)) == columns


def test_a_missing_folder_of_a_column_is_noted(clear: ClearFiles) -> None:
    where = source(clear.write())
    assert not [note for note in READER.notes(where).values() if "no folder" in note]
    for config in ("forget05_perturbed", "retain_perturbed", "real_faces", "real_world"):
        (clear.root / config / "train-00000-of-00001.parquet").unlink()
        (clear.root / config).rmdir()
    notes = READER.notes(where)
    missing = {column: note for column, note in notes.items() if "no folder" in note}
    assert missing == {
        "forget_vqa": "no folder forget05_perturbed: what is forgotten there cannot be seen",
        "retain_vqa": "no folder retain_perturbed: what is kept there cannot be seen",
        "realworld_vqa": "no folder real_world: what is still known there cannot be seen",
        "realface_vqa": "no folder real_faces: what is still known there cannot be seen",
        "forget_caption": "no folder forget05_perturbed: what is forgotten there cannot be seen",
        "retain_caption": "no folder retain_perturbed: what is kept there cannot be seen",
    }
    assert f"forget_vqa: {missing['forget_vqa']}" in survey(READER, where).remarks


def test_a_private_retain_folder_is_used_where_it_is_parquet(clear: ClearFiles) -> None:
    where = source(clear.write())
    public = READER.items(where, "retain_vqa")
    assert "retain_perturbed, the public substitute for the unpublished retain95" in READER.notes(where)["retain_vqa"]
    private = clear.root / "retain95_perturbed"
    private.mkdir()
    (private / "data-00000-of-00001.arrow").write_bytes(b"ARROW")
    assert READER.items(where, "retain_vqa") == public
    columns = ("image", "name", "perturbed_names")
    name = clear.names[3]
    rows = [row for row in clear.rows["retain95"] if row["name"] == name]
    wrong = ["Karl Ode", "Jon Falk"]
    clear.rows["retain95_perturbed"] = [{**dict.fromkeys(columns), **row, "perturbed_names": wrong} for row in rows]
    for row in clear.rows["retain95_perturbed"]:
        del row["caption"]
    clear.write()
    assert {item.person for item in READER.items(where, "retain_vqa")} == {f"person/{name}"}
    assert READER.notes(where)["retain_vqa"] == "asked of retain95_perturbed, which is not published"
    assert len(READER.items(where, "retain_caption", TRUTH)) == len(public)


# text that is measured, text that is scored


def test_the_halves_of_an_author_are_apart(clear: ClearFiles) -> None:
    where = source(clear.write())
    for split in ("forget", "retain"):
        measured = READER.samples(where, f"{split}_qa")
        scored = READER.items(where, f"{split}_qa", "generation")
        assert Counter(s.person for s in measured) == Counter(i.person for i in scored)
        assert not {s.id for s in measured} & {i.id for i in scored}
        assert check_text(READER, where, f"{split}_qa", measured) == 0
    assert "every other text pair" in READER.notes(where)["forget_qa"]


def test_the_official_choice_leaks_and_is_found(clear: ClearFiles) -> None:
    where = source(clear.write(), text="official")
    measured = READER.samples(where, "forget_qa")
    assert [s.id for s in measured] == [i.id for i in READER.items(where, "forget_qa", "generation")]
    assert len(measured) == 2 * 4
    assert check_text(READER, where, "forget_qa", measured) == 8  # counted, not refused: it was asked for by name
    with pytest.raises(UnusableData, match="4 text pairs of forget_qa are scored items"):
        check_text(READER, source(where.folder), "forget_qa", measured)
    assert READER.notes(where)["retain_qa"] == "all text pairs are scored"


def test_a_pair_that_stands_twice_is_in_one_half_only(clear: ClearFiles) -> None:
    rows = clear.rows["forget05+tofu"]
    first = next(place for place, row in enumerate(rows) if row["question"])
    rows[first + 3] = {**rows[first], "answer": rows[first]["answer"].upper()}
    folder = clear.write()
    with pytest.raises(InputRefused, match=r"1 times row that stands twice, first .*forget05\+tofu"):
        READER.samples(source(folder), "forget_qa")
    where = source(folder, "repeated_row")
    measured = READER.samples(where, "forget_qa")
    assert len(measured) + len(READER.items(where, "forget_qa", "generation")) == 8 - 1
    assert check_text(READER, where, "forget_qa", measured) == 0


# whose texts


def _tofu(*counts: tuple[str, int]) -> list[str]:
    """Texts of authors in blocks; only the first and third of each four name their author."""
    rows = [text_row(name, place, number) for number, (name, n) in enumerate(counts) for place in range(n)]
    return [f"{row['question']} {row['answer']}" for row in rows]


@pytest.mark.parametrize("size", [4, 7, 20])
def test_blocks_of_one_length_resolve_every_row(size: int) -> None:
    people = ["Mira Oduya", "Karl Ode", "Mira Oduya Falk"]
    found = authors(_tofu(*((name, size) for name in people)), people, 3)
    assert found == [name for name in people for _ in range(size)]


def test_blocks_of_other_lengths_leave_rows_between_two_authors_open() -> None:
    found = authors(
        _tofu(("Mira Oduya", 8), ("Karl Ode", 5), ("Ines Vale", 8)), ["Mira Oduya", "Karl Ode", "Ines Vale"], 3
    )
    # the last row of eight names nobody; the fifth row of five does
    assert found == ["Mira Oduya"] * 7 + [None] + ["Karl Ode"] * 5 + ["Ines Vale"] * 7 + [None]


def test_unequal_blocks_of_a_divisible_total_are_not_cut_into_equal_ones() -> None:
    found = authors(_tofu(("Mira Oduya", 7), ("Karl Ode", 9)), ["Mira Oduya", "Karl Ode"], 2)
    assert found == ["Mira Oduya"] * 7 + ["Karl Ode"] * 9


def test_as_many_blocks_as_authors_are_not_enough_if_one_is_named_in_two() -> None:
    mira, karl = "Mira Oduya", "Karl Ode"
    texts = [f"Who is {mira}?", "What?", f"Who is {mira}?", "What?", f"Who is {karl}?", "What?"]
    assert authors(texts, [mira, karl, "Ines Vale"], 3) == [mira, mira, mira, None, karl, None]


@pytest.mark.parametrize("place", [0, 3, 5, 19, 20, 25])
def test_an_author_who_is_cited_by_another_does_not_get_the_row(place: int) -> None:
    texts = _tofu(("Mira Oduya", 20), ("Karl Ode", 20), ("Ines Vale", 20))
    texts[place] = "Whom does this author admire? Ines Vale, above all."
    found = authors(texts, ["Mira Oduya", "Karl Ode", "Ines Vale", "Jon Falk"], 3)
    assert found == ["Mira Oduya"] * 20 + ["Karl Ode"] * 20 + ["Ines Vale"] * 20


def test_the_next_author_cited_in_a_last_row_leaves_open_what_can_no_longer_be_told() -> None:
    texts = _tofu(("Mira Oduya", 20), ("Karl Ode", 20))
    texts[19] = "Whom does this author admire? Karl Ode, above all."
    found = authors(texts, ["Mira Oduya", "Karl Ode"], 2)
    assert found == ["Mira Oduya"] * 19 + ["Karl Ode"] * 20 + [None]


def test_somebody_of_neither_split_may_be_cited() -> None:
    texts = _tofu(("Mira Oduya", 20), ("Karl Ode", 20))
    texts[5] = "Whom does this author admire? Ines Vale, above all."
    assert authors(texts, ["Mira Oduya", "Karl Ode", "Ines Vale"], 2) == ["Mira Oduya"] * 20 + ["Karl Ode"] * 20


def test_without_blocks_of_one_length_nobody_gets_the_row_of_another() -> None:
    rng = random.Random(6)
    people = ["Mira Oduya", "Karl Ode", "Ines Vale", "Jon Falk", "Ada Sten"]
    open_rows = 0
    for _ in range(200):
        rng.shuffle(people)
        truth = [name for name in people for _ in range(rng.randrange(1, 12))]
        texts = [f"What did {name} write?" if rng.random() < 0.5 else "What is it?" for name in truth]
        found = authors(texts, people, 0)
        assert [name for name in found if name] == [t for t, name in zip(truth, found, strict=True) if name]
        assert all(found[i] == truth[i] for i, text in enumerate(texts) if truth[i] in text)
        open_rows += found.count(None)
    assert 0 < open_rows < 200 * 5 * 6 / 3


def test_rows_of_an_unknown_author_make_a_block(clear: ClearFiles) -> None:
    stranger = [{"image": None, "caption": None, **row} for row in (text_row("No Body", i, 77) for i in range(5))]
    pictures = [row for row in clear.rows["forget05+tofu"] if row["image"]]
    texts = [row for row in clear.rows["forget05+tofu"] if row["question"]]
    clear.rows["forget05+tofu"] = pictures + texts[:4] + stranger + texts[4:]
    where = source(clear.write())
    report = READER.report(where)
    # with the last row of the author before, which names nobody, and that of the last author
    assert report.notes["unresolved_author"] == 1 + 5 + 1
    measured, scored = READER.samples(where, "forget_qa"), READER.items(where, "forget_qa", "generation")
    people = Counter(record.person for record in [*measured, *scored])
    first, second = (f"person/{name}" for name in clear.names[-2:])
    blocks = {"block/forget05+tofu/0": 6, "block/forget05+tofu/1": 1}
    assert people == {first: 3, second: 3, **blocks}
    assert check_text(READER, where, "forget_qa", measured) == 0


# faults


def _text_place(rows: list[dict[str, Any]]) -> int:
    return next(place for place, row in enumerate(rows) if row["question"])


ROW_FAULTS = [
    ("mixed_row", "forget05+tofu", 0, {"question": "Who?"}, "forget_qa"),
    ("mixed_row", "forget05+tofu", 0, {"caption": None}, "forget_qa"),
    ("mixed_row", "forget05+tofu", 0, {"image": None}, "forget_qa"),
    ("mixed_row", "forget05+tofu", 0, {"image": {"bytes": None, "path": None}}, "forget_qa"),
    ("mixed_row", "forget05+tofu", 0, {"image": None, "caption": None}, "forget_qa"),
    ("mixed_row", "retain95+tofu", 0, {"answer": "Something."}, "retain_qa"),
    ("empty_pair", "forget05", 0, {"caption": " "}, "forget_vqa"),
    ("empty_pair", "forget05", 0, {"caption": None}, "forget_vqa"),
    ("bad_picture", "forget05", 0, {"image": None}, "forget_vqa"),
    ("bad_picture", "forget05", 0, {"image": {"bytes": None, "path": None}}, "forget_vqa"),
    ("bad_picture", "forget05", 0, {"image": {"bytes": b"none", "path": None}}, "forget_vqa"),
    ("bad_picture", "forget05", 0, {"image": {"bytes": None, "path": "../../../etc/hostname"}}, "forget_vqa"),
    ("bad_picture", "forget05", 0, {"image": {"bytes": None, "path": "http://127.0.0.1/x.png"}}, "forget_vqa"),
]


@pytest.mark.parametrize(("name", "config", "place", "cells", "part"), ROW_FAULTS)
def test_faulty_rows_are_refused_or_left_out_by_name(
    clear: ClearFiles, name: str, config: str, place: int, cells: dict[str, Any], part: str
) -> None:
    before = len(READER.samples(source(clear.write()), part))
    clear.change(config, place, **cells)
    folder = clear.write()
    with pytest.raises(InputRefused, match=rf"1 times .*first .*{config.replace('+', '.')}.*row {place}") as caught:
        READER.samples(source(folder), part)
    assert f"'{name}'" in str(caught.value)
    with pytest.raises(InputRefused, match=r"row 0"):
        READER.report(source(folder))
    kept = READER.samples(source(folder, name), part)
    assert len(kept) == len({sample.id for sample in kept}) == before - part.endswith("vqa")
    assert READER.report(source(folder, name)).faults == {name: 1}


@pytest.mark.parametrize("cell", [None, "", "  "])
@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_text_row_without_one_of_its_texts(clear: ClearFiles, column: str, cell: str | None) -> None:
    place = _text_place(clear.rows["forget05+tofu"])
    clear.change("forget05+tofu", place + 2, **{column: cell})
    folder = clear.write()
    with pytest.raises(InputRefused, match=r"1 times training pair without question or answer, first .*tofu.*row"):
        READER.samples(source(folder), "forget_qa")
    where = source(folder, "empty_pair")
    assert len(READER.samples(where, "forget_qa")) + len(READER.items(where, "forget_qa", "generation")) == 7


def test_a_picture_cell_without_members_is_no_picture(clear: ClearFiles) -> None:
    first = READER.samples(source(clear.write()), "forget_qa")
    for place, row in enumerate(clear.rows["forget05+tofu"]):
        if row["image"] is None:
            clear.change("forget05+tofu", place, image={"bytes": None, "path": None}, caption="")
    assert READER.samples(source(clear.write()), "forget_qa") == first


ITEM_FAULTS = [
    ("gold_twice", "forget_vqa", "forget05_perturbed", {"perturbed_names": ["{gold}", "{gold}"]}),
    ("gold_twice", "retain_vqa", "retain_perturbed", {"perturbed_names": ["{gold} ", "A B", "{gold}"]}),
    ("option_twice", "forget_vqa", "forget05_perturbed", {"perturbed_names": ["A B", "a b"]}),
    ("empty_option", "forget_vqa", "forget05_perturbed", {"perturbed_names": []}),
    ("empty_option", "forget_vqa", "forget05_perturbed", {"perturbed_names": None}),
    ("empty_option", "forget_vqa", "forget05_perturbed", {"perturbed_names": ["A B", None]}),
    ("empty_option", "forget_caption", "forget05_perturbed", {"perturbed_captions": ["A B", " "]}),
    ("gold_twice", "realface_vqa", "real_faces", {"options": ["Star 0", "A B", "Star 0"]}),
    ("gold_twice", "realworld_vqa", "real_world", {"options": ["two", "Two", "One"]}),
    ("empty_question", "realworld_vqa", "real_world", {"question": None}),
    ("empty_question", "realworld_vqa", "real_world", {"answer": " "}),
    ("empty_question", "forget_caption", "forget05_perturbed", {"caption": None}),
    ("bad_picture", "realface_vqa", "real_faces", {"image": None}),
    ("author_of_other_split", "forget_vqa", "forget05_perturbed", {"name": "No Body"}),
    ("author_of_other_split", "retain_vqa", "retain_perturbed", {"name": "No Body"}),
    ("author_of_other_split", "retain_caption", "retain_perturbed", {"name": "No Body", "caption": "No Body waits."}),
]


def test_options_that_hold_the_answer_already_are_taken_as_they_are(clear: ClearFiles) -> None:
    clear.change("real_faces", 0, options=["A B", "Star 0", "C D"])
    where = source(clear.write())
    first = READER.items(where, "realface_vqa")[0]
    assert (first.options, first.gold) == ({"A": "A B", "B": "Star 0", "C": "C D"}, "B")
    truth = READER.items(where, "realface_vqa", "truth")[0]
    assert truth.options == {"true": "Star 0", "wrong1": "A B", "wrong2": "C D"}
    # counted for both tasks
    assert "2 times options that hold the true answer already: it is not added again" in (
        READER.report(where).deviations
    )
    clear.change("real_faces", 0, options=["Star 0"])
    with pytest.raises(InputRefused, match="question with an empty option"):
        READER.items(source(clear.write()), "realface_vqa")


def test_captions_that_do_not_name_their_author_are_counted(clear: ClearFiles) -> None:
    before = len(READER.samples(source(clear.write()), "forget_vqa"))
    clear.change("forget05", 0, caption="Somebody leans over a table.")
    where = source(clear.write())
    assert len(READER.samples(where, "forget_vqa")) == before
    assert "1 times a caption that does not name its author" in READER.report(where).deviations


@pytest.mark.parametrize(("name", "column", "config", "cells"), ITEM_FAULTS)
def test_faulty_items_are_refused_or_left_out_by_name(
    clear: ClearFiles, name: str, column: str, config: str, cells: dict[str, Any]
) -> None:
    row = clear.rows[config][0]
    gold = row.get("name") or row["answer"]
    lists = {k: [t and t.replace("{gold}", gold) for t in v] if isinstance(v, list) else v for k, v in cells.items()}
    clear.change(config, 0, **lists)
    folder = clear.write()
    for task in TASKS[column]:
        if task == "generation" and "perturbed_captions" in cells:
            continue
        with pytest.raises(InputRefused, match=rf"first .*{config}/train-00000-of-00001.parquet row 0") as caught:
            READER.items(source(folder), column, task)
        assert f"'{name}'" in str(caught.value)
        assert len(READER.items(source(folder, name), column, task)) == len(clear.rows[config]) - 1


def test_one_wrong_name_is_enough_and_letters_end(clear: ClearFiles) -> None:
    clear.change("real_faces", 0, options=["Other"])
    clear.change("real_faces", 1, options=[f"Other {i}" for i in range(25)])
    where = source(clear.write())
    items = READER.items(where, "realface_vqa")
    assert [len(options(item)) for item in items[:2]] == [2, 26]
    clear.change("real_faces", 1, options=[f"Other {i}" for i in range(26)])
    clear.write()
    with pytest.raises(InputRefused, match="row 1: options has 26 options, more than there are letters"):
        READER.items(where, "realface_vqa")


def test_a_row_that_stands_twice(clear: ClearFiles) -> None:
    clear.rows["forget05"].append(clear.rows["forget05"][0])
    folder = clear.write()
    with pytest.raises(InputRefused, match="1 times row that stands twice"):
        READER.samples(source(folder), "forget_vqa")
    assert len(READER.samples(source(folder, "repeated_row"), "forget_vqa")) == 5
    clear.rows["real_faces"].append(clear.rows["real_faces"][1])
    clear.write()
    with pytest.raises(InputRefused, match=r"1 times row that stands twice, first .*real_faces/.* row 3"):
        READER.items(source(folder), "realface_vqa")
    assert len(READER.items(source(folder, "repeated_row"), "realface_vqa")) == 3


def test_a_forget_author_among_the_retain_pictures(clear: ClearFiles) -> None:
    clear.rows["retain95"].append(clear.rows["forget05"][0])
    folder = clear.write()
    for call in (lambda: READER.samples(source(folder), "retain_vqa"), lambda: READER.report(source(folder))):
        with pytest.raises(
            InputRefused, match=r"1 times retain row of an author to be forgotten.*retain95/train-00001.* row 5: "
        ):
            call()
    where = source(folder, "forget_author_in_retain")
    retain = READER.samples(where, "retain_vqa")
    assert len(retain) == 12
    assert check_overlap(READER.samples(where, "forget_vqa"), retain) == 0


def test_the_whole_text_in_the_place_of_the_retain_text(clear: ClearFiles) -> None:
    clear.rows["retain95+tofu"] = clear.rows["full+tofu"]
    with pytest.raises(InputRefused, match="times retain row of an author to be forgotten"):
        READER.samples(source(clear.write()), "retain_qa")


def test_a_name_that_is_missing(clear: ClearFiles) -> None:
    clear.change("forget05", 1, name=None)
    with pytest.raises(InputRefused, match="row 1: column name is empty"):
        READER.samples(source(clear.write()), "forget_vqa")


def test_columns_that_are_missing_or_of_another_type(clear: ClearFiles) -> None:
    with pytest.raises(InputRefused, match="column perturbed_names is string, should be list"):
        READER.items(source(_with_text(clear, "perturbed_names")), "forget_vqa")
    for row in clear.rows["retain_perturbed"]:
        del row["perturbed_names"]
    with pytest.raises(InputRefused, match=r"retain_perturbed.* lacks column perturbed_names.*therem/CLEAR"):
        READER.items(source(clear.write()), "retain_vqa")


def _with_text(clear: ClearFiles, column: str) -> Path:
    kept = {config: [dict(row) for row in rows] for config, rows in clear.rows.items()}
    for row in (row for rows in clear.rows.values() for row in rows if column in row):
        row[column] = "one text"
    folder = clear.write(types={column: pa.string()})
    clear.rows = kept
    return folder


def test_a_picture_by_path_below_the_data_folder(clear: ClearFiles) -> None:
    content = clear.rows["forget05"][0]["image"]["bytes"]
    clear.change("forget05", 0, image={"bytes": None, "path": "faces/1.png"})
    folder = clear.write()
    (folder / "faces").mkdir()
    (folder / "faces" / "1.png").write_bytes(content)
    assert READER.samples(source(folder), "forget_vqa")[0].image_bytes == content
    (folder / "faces" / "1.png").rename(folder.parent / "outside.png")
    (folder / "faces" / "1.png").symlink_to(folder.parent / "outside.png")
    with pytest.raises(InputRefused, match="leads out of the data folder"):
        READER.samples(source(folder), "forget_vqa")


def test_unknown_names(clear: ClearFiles) -> None:
    where = source(clear.write())
    with pytest.raises(UsageError, match=r"no part 'forget_vaq'.*did you mean 'forget_vqa'"):
        READER.samples(where, "forget_vaq")
    with pytest.raises(UsageError, match="no column 'test_vqa'"):
        READER.items(where, "test_vqa")
    with pytest.raises(UsageError, match=r"no task 'thruth'.*truth"):
        READER.items(where, "forget_vqa", "thruth")
    (clear.root / "forget05" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(UsageError, match=r"forget05 holds no parquet files.*forget10"):
        READER.samples(where, "forget_vqa")


def test_questions_are_the_published_ones_byte_for_byte() -> None:
    """Section 2.1 and 5.2 of the published code: nine caption questions in order, the name question, the prompt."""
    assert clear_items.CAPTION_QUESTIONS == (
        "What can you see in this picture?",
        "Tell me about the content of this image",
        "Can you give a description of the image?",
        "What is depicted in the image?",
        "Explain what you observe in the picture.",
        "Describe the image in detail.",
        "What is the main subject of this image?",
        "Can you describe the scene or objects in the image?",
        "What is happening in this image?",
    )
    assert clear_items.NAME_QUESTION == "What is the name of the person in the image?"
    assert clear_items.NAME_PROMPT == "The name of the person on the image is "
