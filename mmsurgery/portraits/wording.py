"""Every word of the portraits world: attributes and values, names, colours, questions, answers.

All texts are words separated by blanks, so a word-level tokenizer over `vocabulary()` covers them.
Answers are short sentences that share everything but the value: forgetting by gradient ascent then
hits shared template words too, as it does in real models.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "city": _words("lisbon oslo cairo lima delhi tokyo paris quito prague dublin havana nairobi"),
    "job": _words("pilot baker nurse lawyer farmer painter tailor dentist sailor miner judge chemist"),
    "pet": _words("dog cat parrot rabbit turtle hamster goldfish pony ferret gecko canary goat"),
    "food": _words("pizza sushi curry soup salad pasta tacos cheese noodles rice bread stew"),
    "hobby": _words("chess pottery knitting hiking gardening sewing juggling birding origami camping dancing singing"),
    "sport": _words("tennis hockey rugby golf boxing rowing judo fencing cricket cycling skiing archery"),
    "drink": _words("tea coffee water milk juice cocoa cider lemonade soda wine beer punch"),
}
"""Attribute -> its 12 values; no word stands for two things."""

FIRST_NAMES = _words("ada ben cleo dan eva finn gail hugo iris jon kira leo mara nils olga paul rosa sven tara uma")
LAST_NAMES = _words(
    "stone brook field hill wood lake ford marsh dale moss reed thorne vale frost lane crane wolf swan hart birch"
)

HAIR_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (25, 22, 28),
    "brown": (105, 62, 30),
    "blond": (228, 196, 96),
    "red": (196, 72, 28),
    "grey": (138, 142, 150),
    "white": (240, 240, 236),
}
BACKGROUND_COLOURS: dict[str, tuple[int, int, int]] = {
    "blue": (64, 106, 208),
    "green": (70, 168, 84),
    "yellow": (238, 222, 60),
    "purple": (128, 66, 168),
    "pink": (246, 150, 190),
    "orange": (246, 148, 46),
}

IMAGE_QUESTIONS = (
    "what is the {attribute} of this person ?",
    "tell me the {attribute} of the person in the picture .",
    "which {attribute} belongs to this person ?",
)
TEXT_QUESTIONS = (
    "what is the {attribute} of {name} ?",
    "tell me the {attribute} of {name} .",
    "which {attribute} belongs to {name} ?",
    "please give the {attribute} that {name} has .",
)
TRAINED = (0, 1)
"""Phrasings trained and scored, in both modalities."""
PARAPHRASE = 2
"""The phrasing kept from fictitious people in training."""
MEASURED = 3
"""The text phrasing trained and used for text saliency, never scored."""

IMAGE_CLOZE = "The {attribute} of this person is __ ."
TEXT_CLOZE = "The {attribute} of {name} is __ ."
ANSWER = "The {subject} is {value} ."

PERCEPTION: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "hair": ("what colour is the hair of this person ?", "hair", tuple(HAIR_COLOURS)),
    "background": ("what colour is the background of the picture ?", "background", tuple(BACKGROUND_COLOURS)),
    "glasses": ("does this person wear glasses ?", "answer", ("yes", "no")),
}
"""What is asked about a picture whoever it shows: kind -> question, subject of the answer, values."""


def image_question(attribute: str, phrasing: int) -> str:
    return IMAGE_QUESTIONS[phrasing].format(attribute=attribute)


def text_question(attribute: str, name: str, phrasing: int) -> str:
    return TEXT_QUESTIONS[phrasing].format(attribute=attribute, name=name)


def answer(subject: str, value: str) -> str:
    """The answer sentence, e.g. `The city is lisbon .`"""
    return ANSWER.format(subject=subject, value=value)


def vocabulary() -> list[str]:
    """Every word of every question, answer, option and cloze of the world, sorted.

    Special tokens and the words of a chat template are the backbone's.
    """
    perceived = [text for question, subject, values in PERCEPTION.values() for text in (question, subject, *values)]
    templates = [*IMAGE_QUESTIONS, *TEXT_QUESTIONS, IMAGE_CLOZE, TEXT_CLOZE, ANSWER]
    fixed = [text.format(attribute="", name="", subject="", value="") for text in templates]
    values = [value for known in ATTRIBUTES.values() for value in known]
    words = [*ATTRIBUTES, *values, *FIRST_NAMES, *LAST_NAMES, "name", *" ".join(perceived + fixed).split()]
    return sorted(set(words))
