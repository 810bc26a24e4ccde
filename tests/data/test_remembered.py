"""Reading again: only what has changed, and nothing that may have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.data import remembered
from mmsurgery.data.benchmark import Source
from mmsurgery.data.samples import Sample


class Reader:
    """Counts how often it is asked."""

    of_files_alone = True

    def __init__(self) -> None:
        self.asked = 0

    @remembered.remembered
    def samples(self, source: Source, part: str) -> list[Sample]:
        self.asked += 1
        text = (source.folder / "sub" / "rows.txt").read_text()
        return [Sample(id=part, person="person/1", question=text, answer="yes", image_bytes=b"x" * 1000)]


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_answers", type(remembered._answers)())
    monkeypatch.setattr(remembered, "_SETTLED", -1.0)  # what was written just now counts as old


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rows.txt").write_text("one")
    return Source(tmp_path, 5)


def test_the_same_is_read_once(source: Source) -> None:
    reader = Reader()
    first, second = reader.samples(source, "forget_vqa"), reader.samples(source, "forget_vqa")
    assert first == second
    assert reader.asked == 1
    first.clear()
    assert reader.samples(source, "forget_vqa") == second, "the list is the caller's own"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("two"),
        lambda path: path.with_name("more.txt").write_text(""),
        lambda path: path.replace(path.with_name("moved.txt")) and path.write_text("two"),
        lambda path: os.utime(path, (1, 1)),
    ],
)
def test_changed_files_are_read_again(source: Source, change: Callable[[Path], Any]) -> None:
    reader = Reader()
    reader.samples(source, "forget_vqa")
    change(path := source.folder / "sub" / "rows.txt")
    assert reader.samples(source, "forget_vqa")[0].question == path.read_text()
    assert reader.asked == 2


@pytest.mark.parametrize(
    ("forget", "options", "part"),
    [
        (10, {}, "forget_vqa"),
        (5, {"people": frozenset({"person/1"})}, "forget_vqa"),
        (5, {"allow": ("text_leakage",)}, "forget_vqa"),
        (5, {}, "forget_qa"),
    ],
)
def test_another_question_is_another_answer(source: Source, forget: int, options: Any, part: str) -> None:
    reader = Reader()
    reader.samples(source, "forget_vqa")
    assert reader.samples(Source(source.folder, forget, options), part)[0].id == part
    assert reader.asked == 2


def test_readers_do_not_share_what_they_said(source: Source) -> None:
    one, other = Reader(), Reader()
    one.samples(source, "forget_vqa"), other.samples(source, "forget_vqa")
    assert (one.asked, other.asked) == (1, 1)


def test_a_reader_that_does_not_promise_it_is_always_asked(source: Source) -> None:
    reader = Reader()
    reader.of_files_alone = False
    reader.samples(source, "forget_vqa"), reader.samples(source, "forget_vqa")
    assert reader.asked == 2


def test_files_that_were_changed_just_now_are_read_again(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_SETTLED", 1e6)
    reader = Reader()
    reader.samples(source, "forget_vqa"), reader.samples(source, "forget_vqa")
    assert reader.asked == 2


def test_what_fails_is_tried_again(source: Source) -> None:
    reader, path = Reader(), source.folder / "sub" / "rows.txt"
    path.unlink()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            reader.samples(source, "forget_vqa")
    path.write_text("again")
    assert reader.samples(source, "forget_vqa")[0].question == "again"


def test_no_more_is_kept_than_there_is_room_for(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "KEPT", 7_000)  # each answer is of 1,000 bytes and two shares
    reader = Reader()
    for part in ("a", "b", "a", "c", "a", "b"):  # c takes the place of b, which was asked for longest ago
        reader.samples(source, part)
    assert reader.asked == 4
    monkeypatch.setattr(remembered, "KEPT", 100)
    reader.samples(source, "large"), reader.samples(source, "large")
    assert reader.asked == 6


def test_a_link_in_a_circle_is_no_trap(source: Source) -> None:
    (source.folder / "sub" / "up").symlink_to(source.folder)
    reader = Reader()
    reader.samples(source, "forget_vqa"), reader.samples(source, "forget_vqa")
    assert reader.asked == 1


def test_a_file_behind_a_link_is_watched(source: Source, tmp_path_factory: pytest.TempPathFactory) -> None:
    blob, path = tmp_path_factory.mktemp("blobs") / "blob", source.folder / "sub" / "rows.txt"
    blob.write_text("one")
    path.unlink()
    path.symlink_to(blob)
    reader = Reader()
    reader.samples(source, "forget_vqa")
    blob.write_text("two")
    assert reader.samples(source, "forget_vqa")[0].question == "two"


@pytest.mark.parametrize("limit", [0, 2])
def test_a_folder_of_too_many_files_is_not_looked_through(
    source: Source, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(remembered, "_MOST_FILES", limit)
    reader = Reader()
    reader.samples(source, "forget_vqa"), reader.samples(source, "forget_vqa")
    assert reader.asked == 2
