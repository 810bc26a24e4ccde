"""What an open answer is: facts of options, repetition, refusals, the order of the rules, other people's facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mmsurgery.data.samples import Item
from mmsurgery.evaluate.open_answers import Answered, Written, judged
from mmsurgery.evaluate.others import Others
from mmsurgery.evaluate.outcomes import OUTCOMES, facts, outcome, outcome_counts, refuses, repeats, said

CITY = {"A": "The city is lisbon .", "B": "The city is paris .", "C": "The city is New York ."}
JOB = {"A": "Marine biologist", "B": "Architect", "C": "Biologist", "D": "Poet"}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (CITY, ["lisbon", "paris", "new york"]),
        (JOB, ["marine biologist", "architect", "biologist", "poet"]),
        # what is shared in the middle belongs to the fact, what is shared before and after does not
        (
            {"A": "Born in 1985 in Oslo, he said", "B": "Born in 1990 in Lima, he said"},
            ["1985 in oslo", "1990 in lima"],
        ),
        ({"A": "Lisbon is her city", "B": "Her city is Oslo"}, ["lisbon", "oslo"]),
        # one would have nothing left
        ({"A": "painter", "B": "house painter"}, ["painter", "house painter"]),
        ({"A": "The same .", "B": "the SAME"}, ["the same", "the same"]),
        ({"A": "only"}, ["only"]),
        ({"A": "...", "B": "x"}, ["", "x"]),
        ({}, []),
    ],
)
def test_facts_are_what_sets_options_apart(options: dict[str, str], found: list[str]) -> None:
    assert facts(options) == dict(zip(options, found, strict=True))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("He is a marine biologist!", {"marine biologist"}),
        ("A biologist of marine life", {"biologist"}),
        ("marine biologist or biologist", {"marine biologist", "biologist"}),
        ("Architecture, poetry", set()),
        ("poet, poet", {"poet"}),
        ("", set()),
    ],
)
def test_a_fact_is_said_in_whole_words_and_outside_longer_ones(text: str, found: set[str]) -> None:
    assert said(text, [*facts(JOB).values(), ""]) == found


CIRCLES = [
    "thought thought thought",
    "thought, thought, Thought",
    "the the city city",
    "the the the city",
    "name is name is name is",
    "so a b c d a b c d a b c d",
    "The man is a very old baker. The man is a very old baker. The man is a very old baker.",
    # for long enough straight ahead
    "She is a young woman with hair who lives near big harbours he is so very old he is so very old he is so very old",
    # cut off in its third round
    "The man bakes bread in Oslo. The man bakes bread in Oslo. The man bakes",
    "lalalalala",
    "nooooooooo",
]
STRAIGHT = [
    "",
    "The city is New York, New York.",
    "The man with the hat sits at the desk in the library of the city of the north.",
    "He earns $71,000,000,000 a year.",
    "hahahaha",
    "A very, very good baker",
    "name is name is baker",
    "Hina Ameen, a young woman with long brown hair, is seated at a desk with a book in front of her.",
]


@pytest.mark.parametrize("text", CIRCLES)
def test_circles(text: str) -> None:
    assert repeats(text)
    assert outcome(text, CITY, "A", other=None, fluency=1.0) == "gibberish"


@pytest.mark.parametrize("text", STRAIGHT)
def test_no_circles(text: str) -> None:
    assert not repeats(text)


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I don’t know who this is",
        "I DO NOT KNOW",
        "I can not say who it is.",
        "I am unable to identify people",
        "Her city is unknown.",
        "Sorry, I cannot answer that.",
        "I'm sorry",
    ],
)
def test_refusals(text: str) -> None:
    assert refuses(text)
    assert outcome(text, CITY, "A", other=None, fluency=0.0) == "refusal"


@pytest.mark.parametrize("text", ["The unknown city", "I know", "He is unable to walk", "I donut know"])
def test_no_refusals(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    ("text", "other", "fluency", "found"),
    [
        ("The city is lisbon .", None, 1.0, "correct"),
        ("She lives in Lisbon", None, 0.01, "correct"),
        ("lisbon or paris", None, 1.0, "wrong"),
        ("The city is paris .", None, 1.0, "wrong"),
        ("The city is paris .", "paris", 1.0, "other_person"),
        # whoever else is named, the right fact is told
        ("Lisbon, where the baker lives", "baker", 1.0, "correct"),
        # a refusal that tells
        ("I don't know, perhaps Lisbon", None, 1.0, "correct"),
        ("I don't know, perhaps Paris", "paris", 1.0, "refusal"),
        ("", None, None, "gibberish"),
        (" ... !", None, None, "gibberish"),
        ("<image>", None, None, "gibberish"),
        # likelihood alone makes no gibberish of a fact, an option or a refusal
        ("the of lisbon who", None, 0.0099, "gibberish"),
        ("the of paris who", "paris", 0.0099, "gibberish"),
        ("the of paris who", "paris", 0.01, "other_person"),
        ("Lisbon!", None, 0.0, "correct"),
        ("The city is lisbon", None, 0.0, "correct"),
        ("Paris", None, 0.0, "wrong"),
        ("Oslo", "oslo", 0.0, "other_person"),
        ("Oslo", None, 0.0, "gibberish"),
        ("who knows", None, 1.0, "wrong"),
    ],
)
def test_outcomes(text: str, other: str | None, fluency: float | None, found: str) -> None:
    assert outcome(text, CITY, "A", other=other, fluency=fluency) == found


def test_an_option_without_words_makes_no_answer_of_nothing() -> None:
    assert outcome("", {"A": "...", "B": "x"}, "B", other=None, fluency=None) == "gibberish"


def test_equal_options_are_one_fact() -> None:
    same = {"A": "The city is lisbon", "B": "The city is lisbon.", "C": "The city is paris"}
    assert outcome("It is lisbon", same, "B", other=None, fluency=1.0) == "correct"


def answered(text: str, **changed: Any) -> Answered:
    given = {"options": CITY, "gold": "A", "other": None, "fluency": 1.0, **changed}
    return Answered("i", "p", "c", "x", text, **given)


def test_paraphrases_are_right_in_other_words() -> None:
    assert [answered(text).paraphrased for text in ("The city is Lisbon", "LISBON.", "In Lisbon", "In Paris")] == [
        False, False, True, False,
    ]  # fmt: skip


@dataclass(frozen=True)
class Case:
    outcome: str
    paraphrased: bool = False
    repeated: bool = False


def test_counts_add_up() -> None:
    cases = [Case("correct", True), Case("correct"), Case("gibberish", False, True), Case("wrong", False, True)]
    assert outcome_counts(cases) == {
        "correct": 2, "other_person": 0, "wrong": 1, "refusal": 0, "gibberish": 1, "n": 4, "paraphrased": 1,
        "repeated": 2,
    }  # fmt: skip
    assert outcome_counts([]) == dict.fromkeys((*OUTCOMES, "n", "paraphrased", "repeated"), 0)


# other people


def city(person: str, question: str, gold: str, column: str = "forget_qa", *, wrong: str = "paris") -> Item:
    options = {"A": f"The city is {gold} .", "B": f"The city is {wrong} ."}
    return Item(f"{column}/{person}/{question}", person, question, column=column, options=options, gold="A")


def food(person: str, question: str, gold: str, column: str = "forget_qa") -> Item:
    options = {"A": f"The food is {gold} .", "B": "The food is stew ."}
    return Item(f"{column}/{person}/{question}", person, question, column=column, options=options, gold="A")


def people() -> dict[str, list[Item]]:
    """Three people of two columns, asked about by name; two more who are asked alike."""
    return {
        "forget_qa": [
            city("p0", "What is the city of Anna Berg ?", "lisbon"),
            food("p0", "What is the food of Anna Berg ?", "soup"),
            city("p1", "What is the city of Paul Berg ?", "oslo"),
            food("p1", "What is the food of Paul Berg ?", "rice"),
        ],
        "retain_qa": [
            city("p2", "What is the city of Tara Lane ?", "cairo", "retain_qa"),
            food("p2", "What is the food of Tara Lane ?", "pasta", "retain_qa"),
            city("p3", "What is the city of Ada Ford ?", "lima", "retain_qa", wrong="new york"),
            city("p3", "Who rules the city of Ada Ford ?", "quito", "retain_qa"),
        ],
    }


def test_facts_of_other_people_answer_the_same_kind_of_question() -> None:
    columns = people()
    others, asked = Others(columns), columns["forget_qa"][0]
    # of the same column and of another one
    assert others.said(asked, "The city is oslo .") == "oslo"
    assert others.said(asked, "cairo!") == "cairo"
    # one's own, nobody's, and what answers other questions
    assert others.said(asked, "The city is lisbon .") is None
    assert others.said(asked, "The city is paris .") is None
    assert others.said(asked, "The city is new york .") is None
    assert others.said(asked, "The food is rice .") is None
    assert others.said(asked, "The city is soup .") is None
    assert others.said(columns["forget_qa"][1], "The food is rice .") == "rice"
    assert others.said(asked, "") is None
    # the first, and whole words alone
    assert others.said(asked, "cairo or oslo") == "cairo"
    assert others.said(asked, "osloer") is None


def test_the_longest_fact_of_another_is_said() -> None:
    columns = people()
    columns["retain_qa"] += [
        city("p4", "What is the city of Leo Wolf ?", "york", "retain_qa"),
        food("p4", "What is the food of Leo Wolf ?", "pizza", "retain_qa"),
        city("p5", "What is the city of Uma Moss ?", "new york", "retain_qa"),
        food("p5", "What is the food of Uma Moss ?", "pizza", "retain_qa"),
    ]
    others, asked = Others(columns), columns["forget_qa"][0]
    assert others.said(asked, "New York .") == "new york"
    assert others.said(asked, "York .") == "york"


def test_one_question_alone_tells_no_name() -> None:
    """Words of a question that few people are asked are not taken for its person's name."""
    columns: dict[str, list[Item]] = {}
    columns["more"] = [
        city("p8", "What is the prize of this person ?", "delhi", "more"),
        city("p9", "What is the award of this person ?", "tokyo", "more"),
        city("p6", "What is the city of this person ?", "lima", "more"),
    ]
    columns["forget_vqa"] = [
        city("p7", "What is the award of this person ?", "rome", "forget_vqa"),
        city("p7", "What is the city of this person ?", "rome", "forget_vqa"),
    ]
    others = Others(columns)
    assert others.said(columns["forget_vqa"][0], "delhi") is None
    assert others.said(columns["forget_vqa"][0], "tokyo") == "tokyo"


def test_an_option_of_the_kind_is_another_persons_however_that_one_was_asked() -> None:
    columns = people()
    columns["test_vqa"] = [city("p4", "Where is this person from ?", "new york", "test_vqa")]
    others, asked = Others(columns), columns["forget_qa"][0]
    # offered to somebody in this kind of question, gold of somebody in another
    assert others.said(asked, "The city is new york .") == "new york"
    # somebody's, but never offered for this kind of question
    columns["test_vqa"].append(city("p5", "Where is this person from ?", "delhi", "test_vqa"))
    assert Others(columns).said(asked, "The city is delhi .") is None


def test_where_nobody_else_is_asked_the_column_counts() -> None:
    columns = people()
    alone = columns["retain_qa"][3]
    others = Others(columns)
    assert others.said(alone, "The city is cairo .") == "cairo"
    assert others.said(alone, "The food is pasta .") == "pasta"
    # of another column, unless it is a wrong option of this very question
    assert others.said(alone, "The city is oslo .") is None
    columns["forget_qa"].append(city("p1", "Where is Paul Berg ?", "paris", wrong="rome"))
    assert Others(columns).said(alone, "The city is paris .") == "paris"
    # its own other facts, and words of the question
    assert others.said(alone, "The city is lima .") is None
    columns["retain_qa"][3] = city("p3", "Who rules the cairo city of Ada Ford ?", "quito", "retain_qa")
    assert Others(columns).said(columns["retain_qa"][3], "The city is cairo .") is None


def test_what_was_written_is_judged_with_what_is_known_of_others() -> None:
    columns = people()
    items, texts = columns["forget_qa"][:2], ("The city is oslo .", "soup")
    written = [Written(f"sha{n}", text) for n, text in enumerate(texts)]
    found = judged(items, written, Others(columns), [0.5, 0.25])
    assert [(each.id, each.prompt_sha256, each.outcome, each.other, each.fluency) for each in found] == [
        (items[0].id, "sha0", "other_person", "oslo", 0.5),
        (items[1].id, "sha1", "correct", None, 0.25),
    ]
