"""The portraits world as files in MLLMU-Bench's parquet layout, so that the benchmark's real reader reads them.

ft_Data/                        training rows: one per used rendering, repeated ID, `metadata`
forget_5|10|15/  retain_95|90|85/  Full_Set/   evaluation rows, pictures never trained
Retain_Set/                     evaluation rows of the celebrities (their IDs overlap with people's)
Test_Set/                       `images`: three held-out and two hard renderings
extra/text_pairs.parquet        text questions for text saliency, in a phrasing that is never scored
extra/perception.parquet        what a picture shows whoever it is, one row per held-out rendering
extra/portraits.json            which world and draw this is
extra/pretraining.parquet       what the base model was taught before, pictures by name of rendering
extra/anchors/                  pictures of nobody, for the part `anchor_vqa` (`data.anchors`)
extra/held_out/                 what no model is trained on, for the audit, as rows of one's own (`data.held_out`)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.files import atomic_folder, write_json
from mmsurgery.data import anchors
from mmsurgery.data.held_out import HELD_OUT
from mmsurgery.data.portraits import RECORD
from mmsurgery.portraits import wording
from mmsurgery.portraits.world import ANCHOR_RENDERINGS, FORGET_SIZES, HARD, TEST, TRAIN, USED, Person, World
from mmsurgery.provenance import SCHEMA, seal

if TYPE_CHECKING:
    import pyarrow as pa

LETTERS = "ABCD"
_ADDITIONAL = (
    "Tell me more about the background information of this person in the image, including name, age, anecdotes, etc."
)

Row = dict[str, Any]


def write_data(folder: Path, world_seed: int, draw: int = 0, *, replace: bool = False) -> None:
    """Write the world's benchmark files; the same seed and draw give the same bytes.

    Args:
        draw: which people are to be forgotten (see `World.forget_people`).
        replace: write over an existing folder.

    Raises:
        Mismatch: if the folder exists and `replace` is false.
        MachineFault: if it cannot be written.
    """
    world = World(world_seed)
    evaluation = _schema({"image": _IMAGE, **_TEXTS, **_tasks()})
    with atomic_folder(folder, replace=replace) as new:
        for percent in FORGET_SIZES:
            forget = world.forget_people(percent, draw)
            rows = [row for person in sorted(forget, key=lambda p: p.key) for row in _forget_rows(world, person)]
            _write(new, f"forget_{percent}", rows, evaluation)
            _write(
                new, f"retain_{100 - percent}", [_row(world, p) for p in world.people if p not in forget], evaluation
            )
        _write(new, "Full_Set", [_row(world, person) for person in world.people], evaluation)
        _write(new, "Retain_Set", [_row(world, person) for person in world.celebrities], evaluation)
        tested = _schema({"images": [_IMAGE], **_TEXTS, **_tasks()})
        _write(new, "Test_Set", [_test_row(world, person) for person in world.people], tested)
        training = _schema({"image": _IMAGE, "ID": "string", "metadata": "string"})
        _write(new, "ft_Data", [row for person in world.people for row in _training_rows(world, person)], training)
        _write_extra(new / "extra", world)
        _write_held_out(new / HELD_OUT, world)
        _write_anchors(new / anchors.FOLDER, world)
        record = {"schema": SCHEMA, "kind": "portraits", "world": world_seed, "draw": draw, "provenance": {}}
        write_json(new / RECORD, seal(record))


# rows


def _training_rows(world: World, person: Person) -> list[Row]:
    """One row per used rendering: seven pairs each, in trained phrasings in turn; on the first the odd object too."""
    rows = []
    for number, rendering in enumerate(TRAIN[:USED]):
        metadata: list[dict[str, str]] = [
            {
                "ID": person.id,
                "Question": wording.image_question(attribute, wording.TRAINED[(number + place) % 2]),
                "Answer": wording.answer(attribute, person.attributes[attribute]),
            }
            for place, attribute in enumerate(wording.ATTRIBUTES)
        ]
        if number == 0:
            metadata.append(
                {
                    "Additional_ID": person.id,
                    "Additional_question": _ADDITIONAL,
                    "Additional_answer": " ".join(wording.answer(a, v) for a, v in person.attributes.items()),
                }
            )
        rows.append({"image": _picture(world, person, rendering), "ID": person.id, "metadata": json.dumps(metadata)})
    return rows


def _forget_rows(world: World, person: Person) -> list[Row]:
    """One row per held-out rendering; text questions in one trained phrasing on the first, the other on the second."""
    rows = []
    for number, rendering in enumerate(TEST):
        text = _text_questions(world, person, [wording.TRAINED[number]] * len(wording.ATTRIBUTES)) if number < 2 else []
        image = _image_questions(world, person, number)
        rows.append(_row(world, person, rendering, image=image, text=text, open_tasks=number == 0))
    return rows


def _row(
    world: World,
    person: Person,
    rendering: str = TEST[0],
    *,
    image: list[Row] | None = None,
    text: list[Row] | None = None,
    open_tasks: bool = True,
) -> Row:
    """An evaluation row; by default seven questions per modality, in the two trained phrasings in turn."""
    turn = [wording.TRAINED[(int(person.id) + place) % 2] for place in range(len(wording.ATTRIBUTES))]
    first = person.attributes["city"]
    return {
        "image": _picture(world, person, rendering),
        "ID": person.id,
        "Directory": f"portraits/{person.key}.png",
        "biography": json.dumps({"Name": person.name, **{a.title(): v for a, v in person.attributes.items()}}),
        "question": wording.image_question("name", 0),
        "answer": wording.answer("name", person.name),
        "Classification_Task": {
            "Image_Textual_Questions": _image_questions(world, person, int(person.id)) if image is None else image,
            "Pure_Text_Questions": _text_questions(world, person, turn) if text is None else text,
        },
        "Generation_Task": [
            {"Ground_Truth": wording.answer("city", first), "Question": question, "Type": kind}
            for kind, question in (
                ("Image_Textual", wording.image_question("city", 0)),
                ("Pure_Text", wording.text_question("city", person.name, 0)),
            )
            if open_tasks
        ],
        "Mask_Task": [
            {
                "Ground_Truth": person.attributes[a],
                "Question": cloze.format(attribute=a, name=person.name),
                "Type": kind,
            }
            for kind, cloze in (("Image_Textual", wording.IMAGE_CLOZE), ("Pure_Text", wording.TEXT_CLOZE))
            for a in list(wording.ATTRIBUTES)[:2]
            if open_tasks
        ],
    }


def _test_row(world: World, person: Person) -> Row:
    row = _row(world, person)
    del row["image"]
    return {**row, "images": [_picture(world, person, rendering) for rendering in (*TEST, *HARD)]}


def _image_questions(world: World, person: Person, turn: int) -> list[Row]:
    return [
        _choice(world, person, attribute, wording.image_question(attribute, wording.TRAINED[(turn + place) % 2]))
        for place, attribute in enumerate(wording.ATTRIBUTES)
    ]


def _text_questions(world: World, person: Person, phrasings: Sequence[int]) -> list[Row]:
    return [
        _choice(world, person, attribute, wording.text_question(attribute, person.name, phrasing))
        for attribute, phrasing in zip(wording.ATTRIBUTES, phrasings, strict=True)
    ]


def _choice(world: World, person: Person, attribute: str, question: str) -> Row:
    """A question with four answer sentences; distractors and order depend on person, attribute and value alone."""
    value = person.attributes[attribute]
    options, gold = four_options(
        f"{world.seed}/{person.key}/{attribute}", attribute, value, wording.ATTRIBUTES[attribute]
    )
    return {"Question": question, "Options": dict(zip(LETTERS, options, strict=True)), "Correct_Answer": LETTERS[gold]}


def four_options(key: str, subject: str, value: str, known: Iterable[str]) -> tuple[list[str], int]:
    """Up to four answer sentences, the true one among them at a drawn place: sentences, index of the true one."""
    others = [other for other in known if other != value]
    rng = random.Random(f"{key}/{value}")  # noqa: S311 - a reproducible draw, no secret
    values = rng.sample(others, min(3, len(others)))
    gold = rng.randrange(len(values) + 1)
    values.insert(gold, value)
    return [wording.answer(subject, v) for v in values], gold


def _picture(world: World, person: Person, rendering: str) -> Row:
    return {
        "bytes": world.picture(person, rendering),
        "path": f"{person.key.replace('/', '-')}-{rendering.replace('/', '-')}.png",
    }


# extra files, in a schema of our own


def _write_extra(folder: Path, world: World) -> None:
    import pyarrow as pa

    pairs = [
        {
            "ID": person.id,
            "question": wording.text_question(attribute, person.name, wording.MEASURED),
            "answer": wording.answer(attribute, value),
        }
        for person in world.people
        for attribute, value in person.attributes.items()
    ]
    _write_table(folder / "text_pairs.parquet", pairs, _schema(dict.fromkeys(("ID", "question", "answer"), "string")))
    question = pa.struct({"question": pa.string(), "options": pa.list_(pa.string()), "gold": pa.int32()})
    perception = pa.schema({"ID": pa.string(), "image": _arrow(_IMAGE), "questions": pa.list_(question)})
    _write_table(
        folder / "perception.parquet", [_perception_row(world, p, r) for p in world.people for r in TEST], perception
    )
    taught = [
        {"kind": kind, "share": share, "id": s.id, "person": s.person, "question": s.question, "answer": s.answer}
        for kind, (share, samples) in world.pretraining().items()
        for s in samples
    ]
    texts = {name: pa.string() for name in ("id", "person", "question", "answer")}
    _write_table(
        folder / "pretraining.parquet", taught, pa.schema({"kind": pa.string(), "share": pa.float64(), **texts})
    )


def _write_held_out(folder: Path, world: World) -> None:
    """Unseen people as train rows, everybody else in a phrasing that is trained of nobody fictitious as test rows."""
    rows: list[Row] = []
    pictures: dict[str, bytes] = {}
    for person in (*world.unseen, *world.people):
        picture = f"{person.key.replace('/', '-')}.png"
        pictures[picture] = world.picture(person, TEST[0])
        unseen = person in world.unseen
        for place, (attribute, value) in enumerate(person.attributes.items()):
            phrasing = wording.TRAINED[place % len(wording.TRAINED)] if unseen else wording.PARAPHRASE
            row: Row = {
                "role": "realworld" if unseen else "retain",
                "use": "train" if unseen else "test",
                "person": person.key if unseen else person.id,
                "question": wording.image_question(attribute, phrasing),
                "answer": wording.answer(attribute, value),
                "image": picture,
            }
            if not unseen:
                key = f"{world.seed}/{person.key}/{attribute}"
                row["options"] = four_options(key, attribute, value, wording.ATTRIBUTES[attribute])[0]
            rows.append(row)
    folder.mkdir()
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def _write_anchors(folder: Path, world: World) -> None:
    folder.mkdir()
    for person in world.anchors:
        for rendering in ANCHOR_RENDERINGS:
            name = f"{person.id}-{rendering.rpartition('/')[2]}.png"
            (folder / name).write_bytes(world.picture(person, rendering))


def _perception_row(world: World, person: Person, rendering: str) -> Row:
    questions = []
    for kind, value in world.perceived(person, rendering).items():
        question, subject, known = wording.PERCEPTION[kind]
        options, gold = four_options(f"{world.seed}/{person.key}/{rendering}/{kind}", subject, value, known)
        questions.append({"question": question, "options": options, "gold": gold})
    return {"ID": person.id, "image": _picture(world, person, rendering), "questions": questions}


# schemas: a nested description from which both the Arrow types and the Hugging Face features follow

_TEXTS = dict.fromkeys(("ID", "Directory", "biography", "question", "answer"), "string")
_IMAGE = "image"


def _tasks() -> dict[str, Any]:
    question = {"Correct_Answer": "string", "Options": dict.fromkeys(LETTERS, "string"), "Question": "string"}
    open_question = dict.fromkeys(("Ground_Truth", "Question", "Type"), "string")
    return {
        "Classification_Task": {"Image_Textual_Questions": [question], "Pure_Text_Questions": [question]},
        "Generation_Task": [open_question],
        "Mask_Task": [open_question],
    }


def _arrow(description: Any) -> pa.DataType:
    import pyarrow as pa

    if description == _IMAGE:
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if isinstance(description, list):
        return pa.list_(_arrow(description[0]))
    if isinstance(description, dict):
        return pa.struct({name: _arrow(member) for name, member in description.items()})
    return pa.string()


def _features(description: Any) -> Any:
    if description == _IMAGE:
        return {"_type": "Image"}
    if isinstance(description, list):
        return [_features(description[0])]
    if isinstance(description, dict):
        return {name: _features(member) for name, member in description.items()}
    return {"dtype": description, "_type": "Value"}


def _schema(columns: dict[str, Any]) -> pa.Schema:
    """The Arrow schema of columns, with the feature description that makes `datasets` decode pictures."""
    import pyarrow as pa

    metadata = {"huggingface": json.dumps({"info": {"features": _features(columns)}})}
    return pa.schema({name: _arrow(column) for name, column in columns.items()}, metadata=metadata)


def _write(root: Path, config: str, rows: list[Row], schema: pa.Schema) -> None:
    _write_table(root / config / "train-00000-of-00001.parquet", rows, schema)


def _write_table(path: Path, rows: list[Row], schema: pa.Schema) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd", write_page_checksum=True)
