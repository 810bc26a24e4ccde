"""Scored items from CLEAR's picture rows: recognition among names, questions about the world, captions."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.data.clear_configs import DATASET
from mmsurgery.data.faults import Report
from mmsurgery.data.leakage import normalised
from mmsurgery.data.samples import Item
from mmsurgery.data.tables import Row, distinct, is_text, picture_bytes, read_rows
from mmsurgery.errors import InputRefused

TRUTH = "truth"
"""Task of CLEAR's own metrics: options `true`, `paraphrase` where there is one, `wrong1`, ...; gold `true`."""

CAPTION_QUESTIONS = (
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
NAME_QUESTION = "What is the name of the person in the image?"
NAME_PROMPT = "The name of the person on the image is "
"""The blank at the end is the published code's."""


@dataclass(frozen=True)
class Form:
    """Which cells of a row are asked for."""

    gold: str
    wrong: str
    tasks: tuple[str, ...]
    name: str | None
    """Column that says whom the picture shows."""
    people: str = "person"
    """First half of the person's key."""
    question: str | None = None
    """Column with the question; None: the name is asked for, or a description."""
    paraphrase: str | None = None


FORMS = {
    "vqa": Form("name", "perturbed_names", ("classification", TRUTH), "name"),
    "caption": Form("caption", "perturbed_captions", ("generation", TRUTH), "name", paraphrase="paraphrased_caption"),
    "realface": Form("answer", "options", ("classification", TRUTH), "answer", "celebrity"),
    "realworld": Form("answer", "options", ("classification", TRUTH), None, "realworld", question="question"),
}


def drawn(key: str, count: int) -> int:
    """A number below `count` that depends on the key alone: the same in every order of reading."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()) % count


def caption_question(row_id: str) -> str:
    """The question that a row's caption answers."""
    return CAPTION_QUESTIONS[drawn(f"{row_id}/question", len(CAPTION_QUESTIONS))]


def names_person(caption: str, name: str) -> bool:
    """Whether the name's words stand in the caption, in whatever letters."""
    return f" {normalised(name)} " in f" {normalised(caption)} "


def read_items(
    root: Path, config: str, column: str, form: Form, task: str, known: frozenset[str] | None, report: Report
) -> Iterator[Item]:
    """The items of a folder's rows; rows with a fault are counted and left out.

    Args:
        known: the split's authors, `normalised`; a row of anybody else is a fault. None: anybody.

    Raises:
        InputRefused: for files or columns that are missing or damaged, and names that are empty.
    """
    wrong = () if task == "generation" else (form.wrong,)
    needed = dict.fromkeys(("image", form.name, form.question, form.gold, *wrong))
    optional = (form.paraphrase,) if form.paraphrase and task == TRUTH else ()
    rows = read_rows(root, config, [name for name in needed if name], optional, needs=DATASET)
    for number, row in enumerate(distinct(rows, report)):
        row_id = f"{config}/{number}"
        name = row.text(form.name).strip() if form.name else str(number)
        if known is not None and normalised(name) not in known:
            report.fault("author_of_other_split", f"{row.where}: {name}")
            continue
        if form.paraphrase:
            note_unnamed(row.cells["caption"], name, report)
        choice = _choice(row, row_id, form, task, report)
        if choice is None:
            continue
        question, options, gold = choice
        try:
            picture = picture_bytes(row.cells["image"], root, row.where)
        except InputRefused as error:
            report.fault("bad_picture", error.what)
            continue
        yield Item(
            id=f"{row_id}/{task}",
            person=f"{form.people}/{name}",
            question=question,
            column=column,
            task=task,
            options=options,
            gold=gold,
            image_bytes=picture,
        )


def note_unnamed(caption: object, name: str, report: Report) -> None:
    """Count a caption that does not name its author: nothing depends on it, but the published ones do."""
    if is_text(caption) and not names_person(caption, name):
        report.notes["caption_without_name"] += 1


def _choice(
    row: Row, row_id: str, form: Form, task: str, report: Report
) -> tuple[str, dict[str, str] | None, str] | None:
    """Question, options and gold, if nothing is wrong with them."""
    question, gold = _question(row, row_id, form, task), row.cells[form.gold]
    if not is_text(question) or not is_text(gold):
        report.fault("empty_question", row.where)
        return None
    if task == "generation":
        return question, None, gold
    wrong = row.cells[form.wrong]
    if not wrong or not all(is_text(text) for text in wrong):
        report.fault("empty_option", row.where)
        return None
    folded = [text.strip().casefold() for text in wrong]
    inside = folded.count(gold.strip().casefold())
    if inside > 1:
        report.fault("gold_twice", f"{row.where}: {form.wrong} holds '{gold}'")
        return None
    place = drawn(f"{row_id}/place", len(wrong) + 1)
    if inside:  # the column lists all options, not the wrong ones alone
        report.notes["gold_among_options"] += 1
        place = folded.index(gold.strip().casefold())
        wrong = [text for text, other in zip(wrong, folded, strict=True) if other != folded[place]]
        folded.pop(place)
    if not wrong:
        report.fault("empty_option", row.where)
        return None
    if len(set(folded)) < len(folded):
        report.fault("option_twice", f"{row.where}: {form.wrong}")
        return None
    if task == TRUTH:
        return question, _truth(gold, row.cells.get(form.paraphrase or ""), wrong), "true"
    if len(wrong) >= len(string.ascii_uppercase):
        raise InputRefused(f"{row.where}: {form.wrong} has {len(wrong)} options, more than there are letters")
    texts = [*wrong[:place], gold, *wrong[place:]]
    return question, dict(zip(string.ascii_uppercase, texts, strict=False)), string.ascii_uppercase[place]


def _question(row: Row, row_id: str, form: Form, task: str) -> object:
    if form.question:
        return row.cells[form.question]
    if form.gold == "caption":
        return caption_question(row_id)
    return NAME_PROMPT if task == TRUTH else NAME_QUESTION


def _truth(gold: str, paraphrase: object, wrong: list[str]) -> dict[str, str]:
    options = {"true": gold}
    if is_text(paraphrase):
        options["paraphrase"] = paraphrase
    return options | {f"wrong{number}": text for number, text in enumerate(wrong, 1)}
