"""A folder benchmark of six people, with text pairs, and pictures of nobody beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.settings import BenchmarkSettings, RecipeSettings, Settings

FORGET, RETAIN = ("Ada", "Bo"), ("Cy", "Di", "Ed", "Flo")
FACTS = {"city": ("lisbon", "oslo"), "food": ("soup", "rice")}
STRANGERS = 8
Row = dict[str, Any]


def told(person: str, kind: str) -> str:
    return f"The {kind} is {FACTS[kind][sum(map(ord, person + kind)) % 2]} ."


def rows() -> list[Row]:
    """Of each person two facts, each told with the picture and without, and asked with the picture."""
    found: list[Row] = []
    for role, people in (("forget", FORGET), ("retain", RETAIN)):
        for person in people:
            for kind, words in FACTS.items():
                row = {"role": role, "person": person, "answer": told(person, kind)}
                pictured = {**row, "question": f"What is the {kind} of this person ?", "image": f"{person}.png"}
                found.append(pictured)
                found.append({**row, "question": f"Which {kind} ?"})
                found.append({**pictured, "options": [f"The {kind} is {word} ." for word in words]})
    return found


def write_rows(folder: Path, found: list[Row], picture: Callable[..., bytes]) -> Path:
    """A benchmark's folder; each picture that is named is noise of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted({row["image"] for row in found if "image" in row}):
        (folder / name).write_bytes(picture(sum(map(ord, name))))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


def write_anchors(folder: Path, picture: Callable[..., bytes], first: int = 5000, count: int = STRANGERS) -> Path:
    """Pictures of nobody."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"stranger-{number}.png").write_bytes(picture(first + number))
    return folder


def make(root: Path, model: Path, picture: Callable[..., bytes]) -> Workspace:
    """A workspace with a vanilla model, whose benchmark brings anchors."""
    settings = Settings(
        benchmark=BenchmarkSettings(name="folder", data="data"),
        recipe=RecipeSettings(learning_rate=1e-2, batch_size=2, epochs=3),
    )
    workspace = Workspace(root, settings)
    write_rows(root / "data", rows(), picture)
    write_anchors(root / "data/extra/anchors", picture)
    (root / "mmsurgery.toml").write_text(settings.to_toml())
    shutil.copytree(model, workspace.model_dir("vanilla"))
    return workspace
