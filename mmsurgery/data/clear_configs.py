"""CLEAR's folders: what they are called, and how many rows the published ones have."""

from __future__ import annotations

from collections.abc import Sequence

from mmsurgery.data.benchmark import Source
from mmsurgery.data.leakage import normalised
from mmsurgery.data.tables import parquet_files, read_rows
from mmsurgery.errors import UsageError

DATASET = "use the folders of dataset therem/CLEAR"
PERCENTAGES = (1, 5, 10)
PUBLIC_RETAIN = "retain_perturbed"

PUBLISHED: dict[str, Sequence[int]] = {
    "data": (3768,),
    "full": (3768, 3770),
    "full+tofu": (7768,),
    "forget01": (35,),
    "forget05": (188,),
    "forget10": (379,),
    "retain99": (3735,),
    "retain95": range(3575, 3585),
    "retain90": range(3385, 3395),
    "forget01+tofu": (75,),
    "forget05+tofu": (388,),
    "forget10+tofu": (779,),
    "retain99+tofu": (7695,),
    "retain95+tofu": range(7375, 7385),
    "retain90+tofu": range(6985, 6995),
    "forget01_perturbed": (35,),
    "forget05_perturbed": (188,),
    "forget10_perturbed": (375, 378),
    "retain_perturbed": (395, 400),
    "real_faces": (151,),
    "real_world": (367, 426),
}
"""Config -> rows of its published revisions; where only "3.58k" is known, what that may stand for."""
TEXT_ROWS = 4000
"""Of all 200 authors together, 40 for each percent."""


def split_config(source: Source, split: str) -> str:
    """Folder name of the forget or retain split.

    Raises:
        UsageError: for a percentage that CLEAR does not have.
    """
    if source.forget not in PERCENTAGES:
        raise UsageError(
            f"CLEAR has no split that forgets {source.forget} %", "set forget to 1, 5 or 10 in [benchmark]"
        )
    return f"forget{source.forget:02}" if split == "forget" else f"retain{100 - source.forget}"


def column_config(source: Source, column: str) -> str:
    """Folder of a column's rows."""
    split, _, kind = column.partition("_")
    if split in ("realface", "realworld"):
        return {"realface": "real_faces", "realworld": "real_world"}[split]
    config = split_config(source, split)
    if kind == "qa":
        return f"{config}+tofu"
    if split == "forget":
        return f"{config}_perturbed"
    private = f"{config}_perturbed"
    # as its authors stored it, it is an Arrow folder: without parquet files it does not count
    return private if kind == "vqa" and parquet_files(source.folder / private) else PUBLIC_RETAIN


def names(source: Source, split: str) -> list[str]:
    """The split's authors, each once."""
    rows = read_rows(source.folder, split_config(source, split), ("name",), needs=DATASET)
    return list(dict.fromkeys(row.text("name").strip() for row in rows))


def forgotten(source: Source, split: str) -> set[str]:
    """Who must not be in the split, `normalised`."""
    return {normalised(name) for name in names(source, "forget")} if split == "retain" else set()
