"""What no model was trained on, for the audit: a folder of rows as benchmark `folder` has them (`rows.jsonl` or
`rows.csv`).

    train rows of role realworld      people whom no model has seen, with picture and answer
    test rows with image and options  people of the benchmark, by their key, asked in other words or with other pictures

The role of a test row says nothing: who is forgotten is the benchmark's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmsurgery.data.faults import Report
from mmsurgery.data.folder import item_of, pictures_of
from mmsurgery.data.folder_rows import own_rows
from mmsurgery.data.samples import Item, Sample

HELD_OUT = "extra/held_out"
"""Where it lies in a benchmark's folder, if there."""
COLUMN = "held_out_vqa"


@dataclass(frozen=True)
class HeldOut:
    strangers: Sequence[Sample]
    """Of people whom no model has seen."""
    items: Sequence[Item]


def read_held_out(folder: Path) -> HeldOut:
    """Read a folder of rows that were held out; raises as `folder_rows.own_rows`."""
    rows, picture = own_rows(folder, (), Report(), trained=()), pictures_of(folder)
    strangers = [
        Sample(
            f"held-out/{row.line}",
            f"person/{row.person}",
            row.question,
            answer=row.answer,
            part="strangers",
            image_bytes=picture(row),
        )
        for row in rows
        if row.use == "train" and row.role == "realworld"
    ]
    asked = [row for row in rows if row.use == "test" and None not in (row.image, row.options)]
    items = [item_of(row, COLUMN, "classification", picture(row)) for row in asked]
    # benchmark `folder` calls its items by their lines, too
    return HeldOut(
        strangers, [replace(item, id=f"held-out/{row.line}") for item, row in zip(items, asked, strict=True)]
    )
