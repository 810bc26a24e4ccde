from __future__ import annotations

import json

import pytest

from mmsurgery.data.text_pairs import biography_pairs, named_pairs, parse_biography
from mmsurgery.errors import InputRefused


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What does this person do?", "What does Kai do?"),
        ("What is this person's salary?", "What is Kai's salary?"),
        ("Where was the individual in the image born?", "Where was Kai born?"),
        ("Where does the person depicted in this photo live?", "Where does Kai live?"),
        ("What is the hobby of the person?", "What is the hobby of Kai?"),
    ],
)
def test_a_name_takes_the_place_of_the_picture(question: str, expected: str) -> None:
    assert named_pairs([(question, "This person sings.")], "Kai") == ([(expected, "Kai sings.")], 0)


@pytest.mark.parametrize(
    "question",
    ["What is he known for?", "What is the name of this person?", "What does this person hold in the picture?"],
)
def test_unresolved_questions_are_counted(question: str) -> None:
    assert named_pairs([(question, "Bees.")], "Kai") == ([], 1)


def test_no_name_no_pairs() -> None:
    assert named_pairs([("What does this person do?", "Sings.")], None) == ([], 1)
    assert biography_pairs({"born": "Oslo"}) == ([], 1)


def test_a_name_with_backslashes_is_put_in_as_it_is() -> None:
    assert named_pairs([("Who is this person?", "A poet.")], r"A\1B")[0] == [(r"Who is A\1B?", "A poet.")]


def test_spellings_of_biography_keys() -> None:
    facts = parse_biography(
        '{"Name": "Kai", "Educated at:": "X", "Annual Salary: ": "1", "Parents": {"Father": "Y"}}', "row"
    )
    assert list(facts) == ["name", "educated at", "annual salary", "parents"]
    pairs, unresolved = biography_pairs(facts)
    assert [answer for _, answer in pairs] == ["The place of education of Kai is X.", "The annual salary of Kai is 1."]
    assert unresolved == 1


@pytest.mark.parametrize(
    ("key", "called"),
    [
        ("Height", "height"),
        ("Heights", "height"),
        ("Educated at", "place of education"),
        ("Educated at:", "place of education"),
        ("Annual Salary: ", "annual salary"),
        ("Annual  Salary\u00a0:", "annual salary"),
        ("Medical Conditions", "medical condition"),
        ("Date of Birth", "date of birth"),
    ],
)
def test_what_the_published_keys_are_called(key: str, called: str) -> None:
    facts = parse_biography(json.dumps({"Name ": "Kai", key: "X."}), "row")
    assert biography_pairs(facts) == ([(f"What is the {called} of Kai?", f"The {called} of Kai is X.")], 0)


def test_a_key_in_two_spellings() -> None:
    facts = parse_biography('{"Name": "Kai", "Educated at:": "", "Educated at": "X", "Educated at ": "Y"}', "row")
    assert facts == {"name": "Kai", "educated at": "X"}


def test_nested_listed_and_free_facts_give_no_pairs() -> None:
    facts = {"name": "Kai", "parents": {"Father": "Per"}, "fun facts": ["Sings"], "residence": " ", "description": "X"}
    assert biography_pairs(facts) == ([], 3)


def test_a_biography_that_is_no_object() -> None:
    with pytest.raises(InputRefused, match="row 3 is not a JSON object"):
        parse_biography("[]", "row 3")
