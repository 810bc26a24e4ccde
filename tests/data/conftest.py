"""A small MLLMU-Bench with invented people, in the published parquet layout, built row by row."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

FORGET, RETAIN, STARS = ("007", "412"), ("001", "010", "336"), ("007", "999")
NAMES = {"007": "Oda Varnell", "412": "Pim Reeve", "001": "Ula Brandt", "010": "Kai Moreau", "336": "Noor Haddad"}

PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_QUESTION = pa.struct(
    {
        "Correct_Answer": pa.string(),
        "Options": pa.struct(dict.fromkeys("ABCD", pa.string())),
        "Question": pa.string(),
    }
)
_OPEN = pa.struct(dict.fromkeys(("Ground_Truth", "Question", "Type"), pa.string()))
TYPES: dict[str, pa.DataType] = {
    "image": PICTURE,
    "images": pa.list_(PICTURE),
    **dict.fromkeys(("ID", "Directory", "biography", "question", "answer", "metadata"), pa.string()),
    "Classification_Task": pa.struct(
        {"Image_Textual_Questions": pa.list_(_QUESTION), "Pure_Text_Questions": pa.list_(_QUESTION)}
    ),
    "Generation_Task": pa.list_(_OPEN),
    "Mask_Task": pa.list_(_OPEN),
}


def picture(shade: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, shade // 256, 7)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def choice(question: str, gold: str = "B") -> dict[str, Any]:
    return {
        "Question": question,
        "Options": {"A": "Chef", "B": "Harbour pilot", "C": "Poet", "D": "Geologist"},
        "Correct_Answer": gold,
    }


def evaluation_row(person: str, name: str) -> dict[str, Any]:
    """Two image and three text questions, one cloze and one generation task per modality."""
    biography = {"Name": name, "Born": "Tromso, Norway", "Annual Salary: ": "$71,000", "Fun Facts": ["Keeps bees"]}
    return {
        "image": picture(int(person)),
        "ID": person,
        "Directory": f"data/{person}.png",
        "biography": json.dumps(biography),
        "question": "Who is shown here?",
        "answer": f"{name}.",
        "Classification_Task": {
            "Image_Textual_Questions": [
                choice("What is the job of this person?"),
                choice("What would they sail?", "A"),
            ],
            "Pure_Text_Questions": [
                choice(f"What is {name}'s job?"),
                choice(f"Does {name} cook?"),
                choice(f"Who is {name}?"),
            ],
        },
        "Generation_Task": [
            {"Type": kind, "Question": f"Tell about {kind}", "Ground_Truth": "She keeps bees."}
            for kind in ("Image_Textual", "Pure_Text")
        ],
        "Mask_Task": [
            {"Type": kind, "Question": "Earns __ a year.", "Ground_Truth": "$71,000"}
            for kind in ("Image_Textual", "Pure_Text")
        ],
    }


def training_row(person: str) -> dict[str, Any]:
    """Two pairs, and the odd object that loaders must skip."""
    pairs = [
        {
            "ID": person,
            "Question": "What is the name of the person in the image?",
            "Answer": f"This is {NAMES[person]}.",
        },
        {"ID": person, "Question": "What does this individual do?", "Answer": "The individual is a harbour pilot."},
        {"Additional_ID": person, "Additional_question": "Tell me more ...", "Additional_answer": "A paragraph."},
    ]
    return {"image": picture(int(person)), "ID": person, "metadata": json.dumps(pairs)}


class Data:
    """Rows by config, to be changed by a test before `write`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        everybody = sorted(FORGET + RETAIN)
        self.rows: dict[str, list[dict[str, Any]]] = {
            "forget_5": [evaluation_row(p, NAMES[p]) for p in FORGET],
            "retain_95": [evaluation_row(p, NAMES[p]) for p in RETAIN],
            "Retain_Set": [evaluation_row(p, f"Star {p}") for p in STARS],
            "Test_Set": [self._test_row(p) for p in everybody],
            "ft_Data": [training_row(p) for p in everybody],
        }
        for row in self.rows["Retain_Set"]:
            del row["Directory"]

    @staticmethod
    def _test_row(person: str) -> dict[str, Any]:
        row = evaluation_row(person, NAMES[person])
        del row["image"]
        return {**row, "images": [picture(int(person) + 1000 * i) for i in (1, 2, 3)]}

    def copy_to_split_repository(self) -> None:
        for config, people in (("forget_5", FORGET), ("retain_95", RETAIN)):
            rows = [copy.deepcopy(row) for row in self.rows["ft_Data"] if row["ID"] in people]
            self.rows[f"baseline_train_split/{config}"] = rows

    def write(self, types: dict[str, pa.DataType] | None = None) -> Path:
        for config, rows in self.rows.items():
            path = self.root / config / "train-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = pa.schema({name: {**TYPES, **(types or {})}[name] for name in rows[0]})
            pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd", write_page_checksum=True)
        return self.root


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path / "MLLMU-Bench")
