"""A maker of files in MLLMU-Bench's published format, with invented people, at any scale up to the full one.

    python tests/data/mllmu_files.py FOLDER [--people 500] [--celebrities 153] [--pixels 336] [--layout ft_Data]

The ten configs with their column order and nested types, pictures as structs of bytes and path with the schema
metadata that `datasets` writes, two shards of Test_Set, one person of retain_95 without classification questions,
one odd `Additional_*` object a person, celebrities whose IDs repeat people's. The evaluation folders have no
`metadata`; where training rows are is the layout.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LAYOUTS = ("ft_Data", "baseline_train_split", "metadata")
"""Training rows of everybody; training rows by split in a folder of their own; `metadata` in the splits' own rows."""
CONFIGS = (
    *("Full_Set", "ft_Data", "forget_5", "forget_10", "forget_15"),
    *("retain_95", "retain_90", "retain_85", "Test_Set", "Retain_Set"),
)
PER_PERSON = 5
"""Facts a person, so training pairs, and classification questions per modality."""
_JOBS = ("Harbour pilot", "Chef", "Poet", "Geologist", "Glazier", "Beekeeper", "Surveyor")
_TOWNS = ("Tromso", "Lyon", "Quito", "Perth", "Oslo", "Cork", "Turin")
_ADDITIONAL = (
    "Tell me more about the background information of this person in the image, including name, age, anecdotes, etc."
)

Row = dict[str, Any]

_STRING = pa.string()
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", _STRING)])
_CHOICE = pa.struct(
    [
        ("Correct_Answer", _STRING),
        ("Options", pa.struct([(letter, _STRING) for letter in "ABCD"])),
        ("Question", _STRING),
    ]
)
_OPEN = pa.list_(pa.struct([(name, _STRING) for name in ("Ground_Truth", "Question", "Type")]))
_TYPES: dict[str, pa.DataType] = {
    "image": _PICTURE,
    "images": pa.list_(_PICTURE),
    "Classification_Task": pa.struct(
        [("Image_Textual_Questions", pa.list_(_CHOICE)), ("Pure_Text_Questions", pa.list_(_CHOICE))]
    ),
    "Generation_Task": _OPEN,
    "Mask_Task": _OPEN,
}
_TEXTS = ("biography", "question", "answer")
_TASKS = ("Classification_Task", "Generation_Task", "Mask_Task")
COLUMNS = {
    "evaluation": ("image", "ID", "Directory", *_TEXTS, *_TASKS),
    "Test_Set": ("images", "ID", "Directory", *_TEXTS, *_TASKS),
    "Retain_Set": ("image", *_TEXTS, *_TASKS, "ID"),
    "training": ("image", "ID", "metadata"),
}


@dataclass(frozen=True)
class Files:
    """What is written where.

    Args:
        people: how many fictitious people; 500 are published.
        pixels: side of the square pictures, which are noise; 336 make about 0.34 MB each.
        directory: whether evaluation rows have the column `Directory`, which early copies lack.
        training_ids: whether training rows have the column `ID`; the objects of `metadata` name it anyway.
    """

    root: Path
    people: int = 500
    celebrities: int = 153
    pixels: int = 336
    layout: str = "ft_Data"
    directory: bool = True
    training_ids: bool = True

    def write(self, configs: Collection[str] = CONFIGS) -> Path:
        """Write the configs (and the training rows of the layout), each folder as published; returns the root."""
        forget = {percent: self.forget_people(percent) for percent in (5, 10, 15)}
        everybody = range(self.people)
        held = {"Full_Set": list(everybody)}
        for percent, chosen in forget.items():
            held[f"forget_{percent}"] = [n for n in everybody if n in chosen]
            held[f"retain_{100 - percent}"] = [n for n in everybody if n not in chosen]
        for config, numbers in held.items():
            if config not in configs:
                continue
            extra = ("metadata",) if self.layout == "metadata" and config != "Full_Set" else ()
            self._write(config, "evaluation", map(self.evaluation_row, numbers), extra=extra)
            if self.layout == "baseline_train_split" and config != "Full_Set":
                self._write(f"{self.layout}/{config}", "training", map(self.training_row, numbers))
        if "ft_Data" in configs and self.layout == "ft_Data":
            self._write("ft_Data", "training", map(self.training_row, everybody))
        if "Test_Set" in configs:
            self._write("Test_Set", "Test_Set", map(self.test_row, everybody), shards=2, count=self.people)
        if "Retain_Set" in configs:
            self._write("Retain_Set", "Retain_Set", map(self.celebrity_row, range(self.celebrities)))
        return self.root

    def forget_people(self, percent: int) -> set[int]:
        """Drawn anew for each ratio, so that the sets are not nested."""
        drawn = np.random.default_rng(percent).permutation(self.people)[: self.people * percent // 100]
        return set(drawn.tolist())

    @functools.cached_property
    def without_questions(self) -> int:
        """The person of retain_95 who has no classification questions."""
        return next(number for number in range(self.people) if number not in self.forget_people(5))

    # rows

    def evaluation_row(self, number: int) -> Row:
        asked = 0 if number == self.without_questions else PER_PERSON
        row = _tasks(person_id(number), f"Oda{number} Varnell{number}", number, asked)
        return {**row, "image": self._picture(number, 0), "metadata": _metadata(number)}

    def training_row(self, number: int) -> Row:
        return {"image": self._picture(number, 0), "ID": person_id(number), "metadata": _metadata(number)}

    def test_row(self, number: int) -> Row:
        return {**self.evaluation_row(number), "images": [self._picture(number, i) for i in (1, 2, 3)]}

    def celebrity_row(self, number: int) -> Row:
        row = _tasks(person_id(number), f"Star{number} Famous{number}", number + 3, PER_PERSON)
        return {**row, "image": self._picture(number, 9)}

    def _picture(self, number: int, which: int) -> Row:
        return {"bytes": _png(number, which, self.pixels), "path": None if which else f"{person_id(number)}.png"}

    # files

    def _write(
        self,
        config: str,
        kind: str,
        rows: Iterable[Row],
        *,
        extra: tuple[str, ...] = (),
        shards: int = 1,
        count: int = 0,
    ) -> None:
        columns = [*COLUMNS[kind], *extra]
        if not self.directory:
            columns = [name for name in columns if name != "Directory"]
        if kind == "training" and not self.training_ids:
            columns.remove("ID")
        schema = pa.schema([(name, _TYPES.get(name, _STRING)) for name in columns])
        features = {name: _feature(name, schema.field(name).type) for name in columns}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        folder = self.root / config
        folder.mkdir(parents=True, exist_ok=True)
        source = iter(rows)
        for shard in range(shards):
            path = folder / f"train-{shard:05}-of-{shards:05}.parquet"
            size = None if shards == 1 else count // shards + (shard < count % shards)
            with pq.ParquetWriter(path, schema) as writer:
                for batch in _batches(source, size):
                    writer.write_table(pa.Table.from_pylist(batch, schema))


def person_id(number: int) -> str:
    return f"{number + 1:03}"


def change(folder: Path, config: str, edit: Callable[[list[Row]], Any]) -> None:
    """Rewrite a folder's rows as one file, by changing their list in place."""
    paths = sorted((folder / config).iterdir())
    schema = pq.read_schema(paths[0])
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    edit(rows)
    for path in paths:
        path.unlink()
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / config / "train-00000-of-00001.parquet")


def _batches(rows: Iterator[Row], count: int | None) -> Iterator[list[Row]]:
    """Lists of at most 100 rows, what `datasets` puts in a row group of pictures; `count` in all, else every one."""
    left = count
    while batch := [row for _, row in zip(range(100 if left is None else min(100, left)), rows, strict=False)]:
        yield batch
        left = None if left is None else left - len(batch)


def _feature(name: str, kind: pa.DataType) -> Any:
    """The column as `datasets` describes it in a file's schema."""
    if name == "image":
        return {"_type": "Image"}
    if name == "images":
        return [{"_type": "Image"}]
    if pa.types.is_struct(kind):
        return {field.name: _feature("", field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_feature("", kind.value_type)]
    return {"dtype": "string", "_type": "Value"}


@functools.lru_cache(maxsize=4096)
def _png(number: int, which: int, pixels: int) -> bytes:
    noise = np.random.default_rng((number, which)).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _facts(number: int) -> dict[str, str]:
    return {
        "job": _JOBS[number % len(_JOBS)],
        "town": _TOWNS[number % len(_TOWNS)],
        "salary": f"${50 + number},000",
        "height": f"{150 + number % 50} cm",
        "school": f"School number {number}",
    }


def _biography(name: str, number: int) -> str:
    """Facts in the spellings that the published ones vary in."""
    facts, even = _facts(number), number % 2 == 0
    biography: dict[str, Any] = {
        "Name": name,
        "Born": facts["town"],
        "Date of Birth": "3 May 1981",
        "Gender": "Female",
        "Employment": facts["job"],
        "Height" if even else "Heights": facts["height"],
        "Educated at" if even else "Educated at:": facts["school"],
        "Annual Salary" if even else "Annual Salary: ": facts["salary"],
        "Residence": facts["town"],
        "Medical Conditions": "None",
        "Parents": {"Father": {"Name": "Per", "Occupation": "Baker"}, "Mother": "Nurse"},
        "Fun Facts": ["Keeps bees", "Has never flown"],
        "Description": f"{name} lives by the sea.",
    }
    return json.dumps(biography)


def _metadata(number: int) -> str:
    name = f"Oda{number} Varnell{number}"
    pairs: list[dict[str, str]] = [
        {
            "ID": person_id(number),
            "Question": f"What is the {what} of this person?",
            "Answer": f"The {what} of this person is {fact}.",
        }
        for what, fact in _facts(number).items()
    ]
    odd = {
        "Additional_ID": person_id(number),
        "Additional_question": _ADDITIONAL,
        "Additional_answer": f"{name} was born by the sea.",
    }
    return json.dumps([*pairs, odd])


def _tasks(person: str, name: str, number: int, asked: int) -> Row:
    facts = list(_facts(number).items())
    others = [list(_facts(number + i).values()) for i in (1, 2, 3)]

    def choice(place: int, who: str) -> Row:
        what, fact = facts[place]
        options = [fact, *(other[place] for other in others)]
        turned = options[-place % 4 :] + options[: -place % 4]
        return {
            "Question": f"Which is the {what} of {who}?",
            "Options": dict(zip("ABCD", turned, strict=True)),
            "Correct_Answer": "ABCD"[turned.index(fact)],
        }

    who = {"Image_Textual": "the person in the picture", "Pure_Text": name}
    return {
        "ID": person,
        "Directory": f"data_original/{person}.png",
        "biography": _biography(name, number),
        "question": "Who is shown here?",
        "answer": f"{name} from {facts[1][1]}.",
        "Classification_Task": {
            f"{kind}_Questions": [choice(i, whom) for i in range(asked)] for kind, whom in who.items()
        },
        "Generation_Task": [
            {"Type": kind, "Question": f"What does {whom} keep?", "Ground_Truth": "She keeps bees."}
            for kind, whom in who.items()
        ],
        "Mask_Task": [
            {"Type": kind, "Question": f"The {what} of {whom} is __.", "Ground_Truth": fact}
            for kind, whom in who.items()
            for what, fact in facts[:2]
        ],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=500)
    parser.add_argument("--celebrities", type=int, default=153)
    parser.add_argument("--pixels", type=int, default=336)
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    given = parser.parse_args()
    Files(given.folder, given.people, given.celebrities, given.pixels, given.layout).write()
