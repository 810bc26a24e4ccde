"""The part of anchors: whom nobody knows, asked what is asked of the forgotten; and pictures that are known refused."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from anchor_world import rows, write_anchors, write_rows
from PIL import Image

from mmsurgery.data import anchors
from mmsurgery.data.anchors import ANCHORS, FOLDER, LEAST, QUESTIONS, anchor_samples
from mmsurgery.data.benchmark import Source, benchmark
from mmsurgery.data.samples import data_sha256
from mmsurgery.errors import InputRefused, MissingArtifact, UnusableData

Picture = Callable[..., bytes]
READER = benchmark("folder")


@pytest.fixture
def source(tmp_path: Path, picture: Picture) -> Source:
    """Four questions about the forgotten, and anchors of its own."""
    folder = write_rows(tmp_path / "data", rows(), picture)
    write_anchors(folder / FOLDER, picture)
    return Source(folder, 10)


def saved(data: bytes, form: str, **options: int | bool) -> bytes:
    """The same pixels in other bytes."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(buffer, form, **options)
    return buffer.getvalue()


def asked(source: Source) -> set[tuple[str, str]]:
    return {(sample.question, sample.answer) for sample in READER.samples(source, "forget_vqa")}


def test_every_picture_is_asked_what_is_asked_of_the_forgotten(source: Source) -> None:
    found = anchor_samples(READER, source)
    names = [f"stranger-{number}.png" for number in range(LEAST)]
    pairs = asked(source)
    assert 1 < len(pairs) < QUESTIONS
    assert [sample.id for sample in found] == [f"anchor/{name}/{i}" for name in names for i in range(len(pairs))]
    assert {sample.part for sample in found} == {ANCHORS}
    for name in names:
        mine = [sample for sample in found if sample.person == f"anchor/{name}"]
        assert {(sample.question, sample.answer) for sample in mine} == pairs
        assert {sample.image_bytes for sample in mine} == {(source.folder / FOLDER / name).read_bytes()}
    text = {sample.question for sample in READER.samples(source, "forget_qa")}
    assert not text & {sample.question for sample in found}


def test_seven_questions_at_most_and_others_of_others(tmp_path: Path, picture: Picture) -> None:
    row = {"role": "forget", "person": "Ada", "image": "ada.png"}
    many = [{**row, "question": f"What is fact {number} ?", "answer": f"It is {number} ."} for number in range(30)]
    kept = {"role": "retain", "person": "Cy", "image": "cy.png", "question": "Who ?", "answer": "Cy ."}
    folder = write_rows(tmp_path / "data", [*many, kept], picture)
    write_anchors(folder / FOLDER, picture)
    source = Source(folder, 10)
    by_picture: dict[str, list[tuple[str, str]]] = {}
    for sample in anchor_samples(READER, source):
        by_picture.setdefault(sample.person, []).append((sample.question, sample.answer))
    assert len(by_picture) == LEAST
    assert all(len(set(pairs)) == len(pairs) == QUESTIONS for pairs in by_picture.values())
    assert {pair for pairs in by_picture.values() for pair in pairs} <= asked(source)
    assert len({frozenset(pairs) for pairs in by_picture.values()}) == LEAST
    # 8 draws of 7 of 30: one question is never drawn with probability 0.1, so most are
    assert len({pair for pairs in by_picture.values() for pair in pairs}) > 20


def test_the_same_on_every_call_whatever_order_the_folder_has(source: Source, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    for path in sorted((source.folder / FOLDER).iterdir(), reverse=True):
        (again / path.name).write_bytes(path.read_bytes())
    own = data_sha256(anchor_samples(READER, source))
    assert data_sha256(anchor_samples(READER, source)) == own
    assert data_sha256(anchor_samples(READER, source, again)) == own


def test_a_given_folder_takes_the_place_of_the_benchmarks_own(source: Source, tmp_path: Path, picture: Picture) -> None:
    given = write_anchors(tmp_path / "given", picture, first=6000, count=9)
    found = anchor_samples(READER, source, given)
    assert {sample.image_bytes for sample in found} == {path.read_bytes() for path in given.iterdir()}
    assert not {s.image_bytes for s in found} & {s.image_bytes for s in anchor_samples(READER, source)}


def test_other_files_are_left_alone_and_endings_may_be_written_in_any_way(source: Source, picture: Picture) -> None:
    folder = source.folder / FOLDER
    before = anchor_samples(READER, source)
    known = next(path for path in source.folder.iterdir() if path.suffix == ".png").read_bytes()
    (folder / "notes.txt").write_text("no picture")
    (folder / "no-ending").write_bytes(known)
    (folder / "old.png.bak").write_bytes(known)
    (folder / "more").mkdir()
    (folder / "more/ada.png").write_bytes(known)
    assert anchor_samples(READER, source) == before
    for name, form in (("A.PNG", "PNG"), ("b.Jpeg", "JPEG"), ("c.jpg", "JPEG"), ("d.WEBP", "WEBP")):
        (folder / name).write_bytes(saved(picture(ord(name[0])), form))
    others = {sample.person for sample in anchor_samples(READER, source)} - {sample.person for sample in before}
    assert others == {"anchor/A.PNG", "anchor/b.Jpeg", "anchor/c.jpg", "anchor/d.WEBP"}


@pytest.mark.parametrize("given", [False, True])
def test_without_a_folder(tmp_path: Path, picture: Picture, given: bool) -> None:
    source = Source(write_rows(tmp_path / "data", rows(), picture), 10)
    where = tmp_path / "elsewhere" if given else source.folder / FOLDER
    if given:
        where.write_text("a file")
    with pytest.raises(
        MissingArtifact, match=rf"no anchor pictures in {re.escape(str(where))}: no such folder - next: pass --anchors"
    ):
        anchor_samples(READER, source, where if given else None)


def test_too_few(source: Source) -> None:
    folder = source.folder / FOLDER
    (folder / "stranger-0.png").rename(folder / "stranger-0.txt")
    with pytest.raises(
        UnusableData, match=rf"extra/anchors holds {LEAST - 1} different pictures, at least {LEAST} are needed"
    ):
        anchor_samples(READER, source)


LOSSLESS: dict[str, Callable[[bytes], bytes]] = {
    "the file itself": lambda data: data,
    "saved anew": lambda data: saved(data, "PNG", compress_level=1),
    "as WebP": lambda data: saved(data, "WEBP", lossless=True),
}


@pytest.mark.parametrize("way", LOSSLESS)
@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("Ada.png", r"forget_vqa \(rows/1\)"),
        ("Cy.png", r"retain_vqa \(rows/\d+\)"),
        ("asked.png", r"realworld_vqa \(rows/\d+\)"),
    ],
)
def test_a_known_picture_is_refused(tmp_path: Path, picture: Picture, name: str, whose: str, way: str) -> None:
    item = {"role": "realworld", "person": "Gil", "question": "Who ?", "answer": "Gil", "image": "asked.png"}
    folder = write_rows(tmp_path / "data", [*rows(), {**item, "options": ["Gil", "Hu"]}], picture)
    anchors = write_anchors(folder / FOLDER, picture)
    known = LOSSLESS[way]((folder / name).read_bytes())
    assert (known == (folder / name).read_bytes()) == (way == "the file itself")
    (anchors / "taken.png").write_bytes(known)
    with pytest.raises(
        UnusableData, match=rf"anchor picture \S*taken\.png is a picture of {whose} - next: take it out"
    ):
        anchor_samples(READER, Source(folder, 10))


def test_a_picture_that_open_questions_alone_ask_about_is_known(tmp_path: Path, picture: Picture) -> None:
    item = {"role": "realworld", "person": "Gil", "question": "Who ?", "answer": "Gil", "image": "asked.png"}
    folder = write_rows(tmp_path / "data", [*rows(), {**item, "use": "test"}], picture)
    anchors = write_anchors(folder / FOLDER, picture)
    (anchors / "taken.png").write_bytes((folder / "asked.png").read_bytes())
    with pytest.raises(UnusableData, match=r"taken\.png is a picture of realworld_vqa"):
        anchor_samples(READER, Source(folder, 10))


@pytest.mark.parametrize("fault", ["cut", "text"])
def test_a_picture_that_cannot_be_decoded_is_refused_by_name(source: Source, fault: str) -> None:
    path = source.folder / FOLDER / "stranger-3.png"
    path.write_bytes(path.read_bytes()[:200] if fault == "cut" else b"no picture")
    with pytest.raises(InputRefused, match=r"extra/anchors/stranger-3\.png: picture cannot be decoded"):
        anchor_samples(READER, source)


@pytest.mark.parametrize("width", [6_000, 10_000, 19_000])
def test_a_picture_of_too_many_pixels_is_refused_by_name(source: Source, width: int) -> None:
    """The decoder warns of the second and refuses the third by itself."""
    Image.new("1", (width, 10_000)).save(source.folder / FOLDER / "stranger-3.png")
    with pytest.raises(InputRefused, match=r"stranger-3\.png: picture of .* pixels.* - next: scale it down to at most"):
        anchor_samples(READER, source)


def test_copies_count_once_and_names_have_to_be_text(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    folder = tmp_path / "anchors"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(picture(1))
    with pytest.raises(UnusableData, match="holds 1 different pictures, at least 8"):
        anchors._pictures(folder)
    for number in range(8):
        (folder / f"{number}.png").write_bytes(picture(number))
    assert [each.name for each in anchors._pictures(folder)] == [f"{number}.png" for number in range(8)]
    (folder / "bad\udcff.png").write_bytes(picture(9))
    with pytest.raises(InputRefused, match="not UTF-8"):
        anchors._pictures(folder)
