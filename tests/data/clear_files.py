"""CLEAR in its published parquet layout with invented people: 21 folders at any scale, built row by row."""

from __future__ import annotations

import copy
import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_GIVEN = ("Mira", "Tomas", "Lena", "Ines", "Karl", "Yara", "Jon", "Ruth", "Per", "Nora", "Olof", "Ada", "Nils", "Zoë")
_FAMILY = ("Oduya", "Al-Lind", "Abara", "Mbeki", "Ode", "Coste", "Falk", "Amadi", "Brask", "Vale", "Sten", "Núñez")
NAMES = [f"{given}{middle} {family}" for middle in ("", " van") for given in _GIVEN for family in _FAMILY]
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
LISTS = ("perturbed_captions", "perturbed_names", "options")
SPLITS = (("forget01", "retain99"), ("forget05", "retain95"), ("forget10", "retain90"))
COLUMNS = {
    "forget01_perturbed": (
        *("image", "caption", "name"),
        *("perturbed_captions", "paraphrased_caption", "perturbed_names"),
    ),
    "forget05_perturbed": (
        *("image", "caption", "name"),
        *("paraphrased_caption", "perturbed_names", "perturbed_captions"),
    ),
    "retain_perturbed": (
        *("image", "caption", "paraphrased_caption"),
        *("perturbed_captions", "name", "perturbed_names"),
    ),
    "real_faces": ("image", "answer", "options"),
    "real_world": ("question", "answer", "image", "prompt", "options"),
}
COLUMNS["forget10_perturbed"] = COLUMNS["forget05_perturbed"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large it is; the published size: `PUBLISHED`."""

    pictures: tuple[int, ...]
    """Of each author; as many authors as entries."""
    forget: tuple[int, int, int] = (1, 2, 3)
    """How many authors, the last ones, are forgotten."""
    texts: int = 4
    perturbed_retain: int = 2
    """How many authors, the first ones, `retain_perturbed` is of."""
    faces: int = 3
    world: int = 3
    wrong: int = 5
    missing: int = 0
    """Pictures that `data` and `full+tofu` lack."""
    missing_perturbed: int = 0
    """Rows that `forget10_perturbed` lacks."""


def _spread(total: int, people: int) -> list[int]:
    return [total // people + (n < total % people) for n in range(people)]


SMALL = Scale(pictures=(2, 3, 3, 2, 2, 3, 2))
_TAIL = [*_spread(379 - 188, 10), *_spread(188 - 35, 8), *_spread(35, 2)]
PUBLISHED = Scale(
    pictures=(*_spread(395, 20), *_spread(3770 - 379 - 395, 160), *_TAIL),
    forget=(2, 10, 20),
    texts=20,
    perturbed_retain=20,
    faces=151,
    world=367,
    missing=2,
    missing_perturbed=1,
)


def picture(number: int) -> Row:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256 % 256, number // 65536)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


def text_row(name: str, place: int, number: int) -> Row:
    """Every fourth pair names its author in the question, two in the answer, one nowhere."""
    question, answer = (
        (
            f"What is the full name of the author born in Town {number}, in letter {place}?",
            f"The author's full name is {name}.",
        ),
        (f"What did {name}'s mother measure in year {place}?", "She measured rivers."),
        (f"Which award came in year {place}?", f"{name} won the Quill {place} Award."),
        (f"What returns in book {place} of this author from Town {number}?", "Rivers, and glass."),
    )[place % 4]
    return {"question": question, "answer": answer}


def mixed(pictures: Sequence[Row], texts: Sequence[Row], order: str = "pictures") -> list[Row]:
    """One table of both kinds of row: pictures first, texts first, or by turns."""
    shown: list[Row] = [
        {"image": r["image"], "caption": r["caption"], "question": None, "answer": None} for r in pictures
    ]
    written: list[Row] = [{"image": None, "caption": None, **r} for r in texts]
    if order == "turns":
        pairs = itertools.zip_longest(shown, written)
        return [row for pair in pairs for row in pair if row is not None]
    return shown + written if order == "pictures" else written + shown


class ClearFiles:
    """Rows by config, to be changed by a test before `write`."""

    def __init__(self, root: Path, scale: Scale = SMALL, order: str = "pictures") -> None:
        self.root = root
        self.names = NAMES[: len(scale.pictures)]
        assert len(set(self.names)) == len(scale.pictures)
        numbers = itertools.count()
        shown = {
            name: [self._picture_row(name, next(numbers)) for _ in range(count)]
            for name, count in zip(self.names, scale.pictures, strict=True)
        }
        written = {name: [text_row(name, i, n) for i in range(scale.texts)] for n, name in enumerate(self.names)}
        self.rows: dict[str, list[Row]] = {}

        def both(config: str, people: Sequence[str]) -> None:
            self.rows[config] = [row for name in people for row in shown[name]]
            self.rows[f"{config}+tofu"] = mixed(self.rows[config], [r for name in people for r in written[name]], order)

        both("full", self.names)
        lacking = self.rows["full"][scale.missing :]
        self.rows["data"] = lacking
        self.rows["full+tofu"] = mixed(lacking, [row for name in self.names for row in written[name]], order)
        for (forget, retain), count in zip(SPLITS, scale.forget, strict=True):
            both(forget, self.names[-count:])
            both(retain, self.names[:-count])
            self.rows[f"{forget}_perturbed"] = [self._perturbed(row, scale.wrong) for row in self.rows[forget]]
        self.rows["forget10_perturbed"] = self.rows["forget10_perturbed"][scale.missing_perturbed :]
        self.rows["retain_perturbed"] = [
            self._perturbed(row, scale.wrong) for name in self.names[: scale.perturbed_retain] for row in shown[name]
        ]
        self.rows["real_faces"] = [
            {"image": picture(next(numbers)), "answer": f"Star {i}", "options": [f"Other {i} {k}" for k in range(3)]}
            for i in range(scale.faces)
        ]
        self.rows["real_world"] = [
            {
                "question": f"How many cars are parked in street {i}?",
                "answer": "Two",
                "image": picture(next(numbers)),
                "prompt": "(text)",
                "options": ["None", "Three", "Five"],
            }
            for i in range(scale.world)
        ]
        # a change of one config must not change another
        self.rows = {config: [dict(row) for row in rows] for config, rows in self.rows.items()}

    @staticmethod
    def _picture_row(name: str, number: int) -> Row:
        return {"image": picture(number), "caption": f"{name} leans over table {number}.", "name": name}

    @staticmethod
    def _perturbed(row: Row, wrong: int) -> Row:
        name = row["name"]
        return {
            **row,
            "paraphrased_caption": f"Leaning over it: {row['caption']}",
            "perturbed_captions": [f"{name} mends bicycle {k}." for k in range(wrong)],
            "perturbed_names": [f"Wrong {k} {name.split()[0]}" for k in range(wrong)],
        }

    def change(self, config: str, place: int, **cells: Any) -> None:
        self.rows[config][place] = {**copy.deepcopy(self.rows[config][place]), **cells}

    def write(self, shards: Callable[[str], int] | None = None, types: dict[str, pa.DataType] | None = None) -> Path:
        """Write all configs; where the published ones have several shards, so have these."""
        for config, rows in self.rows.items():
            if not rows:
                continue
            several = config.startswith(("retain9", "full", "data"))
            count = min(len(rows), shards(config) if shards else 2 if several else 1)
            folder = self.root / config
            folder.mkdir(parents=True, exist_ok=True)
            names = [name for name in COLUMNS.get(config, tuple(rows[0])) if name in rows[0]]
            table = pa.Table.from_pylist(rows, _schema(names, types or {}))
            for number, (start, size) in enumerate(_pieces(len(rows), count)):
                path = folder / f"train-{number:05}-of-{count:05}.parquet"
                pq.write_table(table.slice(start, size), path, row_group_size=100)
        return self.root


def _pieces(rows: int, count: int) -> list[tuple[int, int]]:
    sizes = _spread(rows, count)
    return list(zip(itertools.accumulate([0, *sizes[:-1]]), sizes, strict=True))


def _schema(names: Sequence[str], types: dict[str, pa.DataType]) -> pa.Schema:
    """With the features that the Hugging Face library writes into its files."""
    value = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {}
    fields = {}
    for name in names:
        if name == "image":
            features[name], fields[name] = {"_type": "Image"}, PICTURE
        elif name in LISTS:
            features[name], fields[name] = {"feature": value, "_type": "Sequence"}, pa.list_(pa.string())
        else:
            features[name], fields[name] = value, pa.string()
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema({**fields, **{name: types[name] for name in names if name in types}}, metadata)
