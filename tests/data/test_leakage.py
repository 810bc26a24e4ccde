from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsurgery.data.benchmark import Source
from mmsurgery.data.leakage import check_leakage, check_overlap, check_text, portrait_reuse
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UnusableData

SCORED = Item(
    id="i",
    person="person/1",
    question="Where does Kai live?",
    options={"A": "Oslo.", "B": "Lima."},
    gold="A",
    column="forget_qa",
)


def text(person: str = "person/1", question: str = "where does kai live ?", answer: str = "OSLO") -> Sample:
    return Sample(id=f"{person}:{question}:{answer}", person=person, question=question, answer=answer)


def test_the_same_pair_in_other_letters_leaks() -> None:
    with pytest.raises(UnusableData, match="1 text pairs of forget_qa are scored items, such as person/1:where"):
        check_leakage({"forget_qa": [text(question="Other?"), text()]}, [SCORED])


def test_allowed_by_name_it_is_counted() -> None:
    assert check_leakage({"forget_qa": [text(), text()]}, [SCORED], allow=["text_leakage"]) == 2
    with pytest.raises(UnusableData):
        check_leakage({"forget_qa": [text()]}, [SCORED], allow=["forget_retain_overlap"])


@pytest.mark.parametrize("other", [text(person="person/2"), text(question="Where did Kai live?"), text(answer="Lima")])
def test_another_person_question_or_answer_does_not_leak(other: Sample) -> None:
    assert check_leakage({"forget_qa": [other]}, [SCORED]) == 0


def test_pictured_samples_are_no_text() -> None:
    pictured = Sample(id="s", person="person/1", question=SCORED.question, answer="Oslo.", image_bytes=b"x")
    assert check_leakage({"forget_vqa": [pictured]}, [SCORED]) == 0


def test_open_items_leak_too() -> None:
    item = Item(id="i", person="person/1", question="Where does Kai live?", gold="Oslo", column="c", task="cloze")
    with pytest.raises(UnusableData):
        check_leakage({"forget_qa": [text()]}, [item])


class Reader:
    """One column with an open question and nothing else."""

    def columns(self, source: Any) -> tuple[str, ...]:
        return ("forget_qa",)

    def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
        item = Item(id="i", person="person/1", question="Where does Kai live?", gold="Oslo", column=column, task=task)
        return [item] if task == "generation" else []


def test_measured_text_is_compared_with_open_questions() -> None:
    reader: Any = Reader()
    with pytest.raises(UnusableData, match="1 text pairs of forget_qa are scored"):
        check_text(reader, Source(Path(), 5), "forget_qa", [text()])
    assert check_text(reader, Source(Path(), 5), "forget_qa", [text(answer="Lima")]) == 0


def _shown(id: str, person: str, picture: bytes) -> Sample:
    return Sample(id=id, person=person, question="q", answer="a", image_bytes=picture)


def test_overlap_by_person_and_by_picture() -> None:
    forget = [_shown("f", "person/1", b"one")]
    assert check_overlap(forget, [_shown("r", "person/2", b"two")]) == 0
    assert check_overlap([text()], [text(person="person/2")]) == 0
    with pytest.raises(UnusableData, match="1 retain samples are of forget people or pictures, such as r"):
        check_overlap(forget, [_shown("r", "person/1", b"two")])
    with pytest.raises(UnusableData):
        check_overlap(forget, [_shown("r", "person/2", b"one")])
    assert check_overlap(forget, [_shown("r", "person/2", b"one")], allow=["forget_retain_overlap"]) == 1


def test_reused_portraits_are_counted() -> None:
    items = [
        Item(id=str(i), person="p", question="q", gold="a", column="c", image_bytes=b)
        for i, b in enumerate((b"one", b"two", None))
    ]
    assert portrait_reuse([_shown("s", "p", b"one"), text()], items) == 1
