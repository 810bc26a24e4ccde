"""The portraits files: written once, read by the real reader, nothing scored that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmsurgery.data.anchors import QUESTIONS, anchor_samples
from mmsurgery.data.benchmark import SETS, TASKS, Source, benchmark
from mmsurgery.data.leakage import check_leakage, check_overlap, portrait_reuse
from mmsurgery.data.portraits import is_whole
from mmsurgery.errors import InputRefused, Mismatch, UnusableData
from mmsurgery.portraits import wording
from mmsurgery.portraits.files import write_data
from mmsurgery.portraits.world import ANCHOR_RENDERINGS, FORGET_SIZES, World, vocabulary

PORTRAITS = benchmark("portraits")
QUESTION = (
    "struct<Correct_Answer: string, Options: struct<A: string, B: string, C: string, D: string>, Question: string>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portraits") / "data"
    write_data(path, 0)
    return path


def test_the_layout_is_mllmu_benchs(folder: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    ratios = {f"forget_{p}" for p in FORGET_SIZES} | {f"retain_{100 - p}" for p in FORGET_SIZES}
    assert names == ratios | {"Full_Set", "Retain_Set", "Test_Set", "ft_Data", "extra"}
    schema = pq.read_schema(folder / "forget_10" / "train-00000-of-00001.parquet")
    assert set(schema.names) == {
        *("image", "ID", "Directory", "biography", "question", "answer"),
        *("Classification_Task", "Generation_Task", "Mask_Task"),
    }
    task = schema.field("Classification_Task").type
    assert str(task.field("Image_Textual_Questions").type.value_type) == QUESTION
    assert str(task.field("Pure_Text_Questions").type.value_type) == QUESTION
    open_task = "struct<Ground_Truth: string, Question: string, Type: string>"
    assert str(schema.field("Mask_Task").type.value_type) == open_task
    assert str(schema.field("Generation_Task").type.value_type) == open_task
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert set(features) == set(schema.names)
    tested = pq.read_schema(folder / "Test_Set" / "train-00000-of-00001.parquet")
    assert "image" not in tested.names
    assert str(tested.field("images").type.value_type) == "struct<bytes: binary, path: string>"


@pytest.mark.parametrize("percent", [5, 10, 15])
def test_counts(folder: Path, percent: int) -> None:
    people = FORGET_SIZES[percent]
    report = PORTRAITS.report(Source(folder, percent))  # type: ignore[attr-defined]
    assert report.counts == {
        "forget_vqa samples": people * 3 * 7,
        "forget_qa samples": people * 7,
        "retain_vqa samples": (60 - people) * 3 * 7,
        "retain_qa samples": (60 - people) * 7,
        "retain_image_qa samples": (60 - people) * 7,
        "forget_vqa items": people * 3 * 7,
        "forget_qa items": people * 2 * 7,
        "retain_vqa items": (60 - people) * 7,
        "retain_qa items": (60 - people) * 7,
        "realworld_vqa items": 140,
        "realworld_qa items": 140,
        "test_vqa items": people * 5 * 7,
        "forget_perception items": people * 3 * 3,
    }
    assert (report.faults, report.without_questions) == ({}, [])
    assert report.deviations == []
    # one odd object a person
    assert report.notes["additional"] == 60


def test_the_generic_reader_reads_the_same(folder: Path) -> None:
    source, generic = Source(folder, 10), benchmark("mllmu-bench")
    assert generic.columns(source) == PORTRAITS.columns(source)
    for part in PORTRAITS.parts(source):
        assert generic.samples(source, part) == PORTRAITS.samples(source, part)


def test_nothing_scored_was_trained(folder: Path) -> None:
    source, world = Source(folder, 10), World(0)
    items = [item for column in PORTRAITS.columns(source) for item in PORTRAITS.items(source, column)]
    parts = {part: PORTRAITS.samples(source, part) for part in PORTRAITS.parts(source)}
    assert check_leakage({p: parts[p] for p in SETS["preserve"]}, items) == 0
    assert check_overlap(parts["forget_vqa"], parts["retain_vqa"]) == 0
    for mixture in (world.pretraining(), world.finetuning()):
        assert portrait_reuse([s for _, samples in mixture.values() for s in samples], items) == 0
    scored = world.finetuning()["person_qa"][1][:1]  # phrasing 0, which is scored
    with pytest.raises(UnusableData, match="text pairs of forget_qa are scored"):
        check_leakage({"forget_qa": scored}, items)


def test_parts_and_items_say_what_the_world_says(folder: Path) -> None:
    source, world = Source(folder, 10), World(0)
    person = world.people[0]
    known = {(s.question, s.answer, s.image_sha256) for s in world.finetuning()["person_vqa"][1]}
    assert all((s.question, s.answer, s.image_sha256) in known for s in PORTRAITS.samples(source, "forget_vqa"))
    spoken = {(s.question, s.answer) for s in world.finetuning()["person_qa"][1]}
    assert all((s.question, s.answer) in spoken for s in PORTRAITS.samples(source, "retain_qa"))
    items = [i for i in PORTRAITS.items(source, "forget_vqa") if i.person == person.key]
    assert {i.image_bytes for i in items} == {world.picture(person, f"test/{k}") for k in range(3)}
    for item in items:
        attribute = next(a for a in wording.ATTRIBUTES if f" {a} " in item.question)
        assert item.options is not None
        assert item.options[item.gold] == wording.answer(attribute, person.attributes[attribute])
        assert len(set(item.options.values())) == 4
        assert all(text.split()[1] == attribute for text in item.options.values())


def test_forget_text_is_asked_in_both_trained_phrasings(folder: Path) -> None:
    items = PORTRAITS.items(Source(folder, 10), "forget_qa")
    assert len({(i.person, i.question) for i in items}) == len(items) == 6 * 2 * 7


def test_gold_letters_are_spread(folder: Path) -> None:
    golds = [i.gold for i in PORTRAITS.items(Source(folder, 10), "retain_vqa")]
    # 378 draws of four letters: 94.5 expected each, standard deviation 8.4
    assert all(50 < golds.count(letter) < 140 for letter in "ABCD")


def test_perception_items(folder: Path) -> None:
    world = World(0)
    for item in PORTRAITS.items(Source(folder, 10), "forget_perception"):
        person = world.people[int(item.person[-3:])]
        rendering = f"test/{item.id.split('/')[2]}"
        assert item.image_bytes == world.picture(person, rendering)
        kind = next(k for k, (question, _, _) in wording.PERCEPTION.items() if question == item.question)
        assert item.options is not None
        assert item.options[item.gold].split()[-2] == world.perceived(person, rendering)[kind]
        assert len(set(item.options.values())) == (2 if kind == "glasses" else 4)


def test_vocabulary_covers_samples_items_and_options(folder: Path) -> None:
    source, words = Source(folder, 15), set(vocabulary())
    texts = [
        t for part in PORTRAITS.parts(source) for s in PORTRAITS.samples(source, part) for t in (s.question, s.answer)
    ]
    for column in PORTRAITS.columns(source):
        for task in TASKS if column != "forget_perception" else TASKS[:1]:
            for item in PORTRAITS.items(source, column, task):
                texts += [item.question, *(item.options or {"": item.gold}).values()]
    assert {word for text in texts for word in text.split()} <= words


def test_pretraining_file_is_the_worlds(folder: Path) -> None:
    rows = pq.read_table(folder / "extra" / "pretraining.parquet").to_pylist()
    mixture = World(0).pretraining()
    expected = [
        (kind, share, s.id, s.question, s.answer) for kind, (share, samples) in mixture.items() for s in samples
    ]
    assert [(r["kind"], r["share"], r["id"], r["question"], r["answer"]) for r in rows] == expected


def test_same_seed_same_bytes_other_draw_other_people(folder: Path, tmp_path: Path) -> None:
    again, drawn = tmp_path / "again", tmp_path / "drawn"
    write_data(again, 0)
    write_data(drawn, 0, draw=1)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*.parquet"))
    assert files == sorted(p.relative_to(again) for p in again.rglob("*.parquet"))
    assert all((folder / f).read_bytes() == (again / f).read_bytes() for f in files)
    for path in (folder / "extra/anchors").iterdir():
        assert {(other / "extra/anchors" / path.name).read_bytes() for other in (again, drawn)} == {path.read_bytes()}
    changed = {str(f.parent) for f in files if (folder / f).read_bytes() != (drawn / f).read_bytes()}
    assert changed == {f"forget_{p}" for p in FORGET_SIZES} | {f"retain_{100 - p}" for p in FORGET_SIZES}
    people = {s.person for s in PORTRAITS.samples(Source(drawn, 10), "forget_vqa")}
    assert people == {p.key for p in World(0).forget_people(10, 1)}


def test_existing_data_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(Mismatch, match="exists already"):
        write_data(folder, 1)


def test_a_folder_without_the_extra_files_is_no_portraits_data(folder: Path, tmp_path: Path) -> None:
    for name in ("forget_10", "retain_90", "ft_Data"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(InputRefused, match=r"no portraits data: extra/text_pairs.parquet is missing"):
        PORTRAITS.samples(Source(tmp_path, 10), "forget_vqa")


@pytest.mark.parametrize(("key", "other"), [("world", 1), ("draw", 3)])
def test_data_of_other_settings_is_refused(folder: Path, key: str, other: int) -> None:
    fitting = Source(folder, 10, {"world": 0, "draw": 0})
    assert PORTRAITS.samples(fitting, "forget_qa") == PORTRAITS.samples(Source(folder, 10), "forget_qa")
    odd = Source(folder, 10, {"world": 0, "draw": 0, key: other})
    for read in (lambda: PORTRAITS.samples(odd, "forget_qa"), lambda: PORTRAITS.items(odd, "retain_qa")):
        with pytest.raises(Mismatch, match=rf"{key} 0, the settings say benchmark.{key} = {other}"):
            read()


def test_further_pictures_and_perception_of_others_than_the_forget_people(folder: Path) -> None:
    source = Source(folder, 10)
    others = {item.person for item in PORTRAITS.items(source, "retain_vqa")}
    asked = frozenset(sorted(others)[:3])
    of_others = Source(folder, 10, {"people": asked})
    for column in ("test_vqa", "forget_perception"):
        own, theirs = PORTRAITS.items(source, column), PORTRAITS.items(of_others, column)
        assert {item.person for item in theirs} == asked
        assert not {item.person for item in own} & asked
        assert len(theirs) * 2 == len(own)  # 6 people are forgotten, every one is asked as much


def test_anchors_are_of_nobody_who_is_trained_or_scored(folder: Path) -> None:
    source, world = Source(folder, 10), World(0)
    found = anchor_samples(PORTRAITS, source)
    pictures = {sample.image_bytes for sample in found}
    assert len({sample.person for sample in found}) == len(pictures) == len(world.anchors) * len(ANCHOR_RENDERINGS)
    assert len(found) == QUESTIONS * len(pictures)
    forgotten = {(sample.question, sample.answer) for sample in PORTRAITS.samples(source, "forget_vqa")}
    assert {(sample.question, sample.answer) for sample in found} <= forgotten
    known = {sample.image_bytes for part in PORTRAITS.parts(source) for sample in PORTRAITS.samples(source, part)}
    known |= {item.image_bytes for column in PORTRAITS.columns(source) for item in PORTRAITS.items(source, column)}
    mixtures = (*world.pretraining().values(), *world.finetuning().values())
    known |= {sample.image_bytes for _, samples in mixtures for sample in samples}
    assert len(known) > 500
    assert not known & pictures
    faces = {person.face for person in (*world.people, *world.celebrities, *world.strangers, *world.unseen)}
    assert not faces & {person.face for person in world.anchors}


def test_whom_a_world_forgets_says_what_anchors_are_asked_not_who_they_are(folder: Path) -> None:
    few, many = (anchor_samples(PORTRAITS, Source(folder, percent)) for percent in (5, 15))
    assert [sample.image_bytes for sample in few] == [sample.image_bytes for sample in many]
    assert {(s.question, s.answer) for s in few} != {(s.question, s.answer) for s in many}


def test_data_that_an_earlier_version_drew_is_not_whole(folder: Path, tmp_path: Path) -> None:
    assert is_whole(folder)
    for missing in ("held_out", "anchors"):
        partly = tmp_path / missing
        (partly / "extra").mkdir(parents=True)
        for name in {"held_out", "anchors"} - {missing}:
            (partly / "extra" / name).symlink_to(folder / "extra" / name)
        assert not is_whole(partly)
