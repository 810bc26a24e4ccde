"""A folder of six people and two strangers, and models of random weights that are asked about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.api import Workspace
from mmsurgery.settings import BenchmarkSettings, RecipeSettings, Settings

FORGET, RETAIN, UNSEEN = ("Ada", "Bo"), ("Cy", "Di", "Ed", "Flo"), ("Gil", "Hu")
FACTS = {"city": ("lisbon", "oslo"), "food": ("soup", "rice")}
Row = dict[str, Any]


def fact(person: str, kind: str) -> str:
    """What is told of a person."""
    return f"The {kind} is {FACTS[kind][sum(map(ord, person + kind)) % 2]} ."


def asked(person: str, kind: str, question: str, **values: Any) -> Row:
    options = [f"The {kind} is {word} ." for word in FACTS[kind]]
    return {"person": person, "question": question, "answer": fact(person, kind), "options": options, **values}


def write_rows(folder: Path, rows: list[Row], picture: Callable[..., bytes]) -> Path:
    """A folder of rows; each picture that they name is noise of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted({row["image"] for row in rows if row.get("image")}):
        (folder / name).write_bytes(picture(sum(map(ord, name))))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def benchmark_rows() -> list[Row]:
    rows: list[Row] = []
    for role, people in (("forget", FORGET), ("retain", RETAIN)):
        for person in people:
            image = f"{person.lower()}.png"
            for kind in FACTS:
                question = f"What is the {kind} of this person ?"
                told = {"person": person, "question": question, "answer": fact(person, kind), "image": image}
                rows.append({"role": role, **told})
                rows.append(asked(person, kind, question, role=role, image=image))
                rows.append(asked(person, kind, f"What is the {kind} of Anna ?", role=role))
    return rows


def held_out_rows() -> list[Row]:
    told = [
        {"role": "realworld", "person": person, "image": f"{person.lower()}.png", "answer": fact(person, kind)}
        | {"question": f"What is the {kind} of this person ?", "use": "train"}
        for person in UNSEEN
        for kind in FACTS
    ]
    others = [("Ada", "city"), ("Cy", "food")]
    return [*told, *(asked(who, kind, f"Which {kind} ?", role="retain", image="new.png") for who, kind in others)]


def change(folder: Path, shift: int) -> None:
    """Other weights: every matrix turned round by so many places."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    turned = {name: np.roll(value, shift) if value.ndim > 1 else value for name, value in load_file(path).items()}
    save_file(turned, path, {"format": "pt"})


def make(root: Path, tiny: Path, picture: Callable[..., bytes], models: tuple[str, ...]) -> Workspace:
    """A workspace with these models, each of weights of its own."""
    recipe = RecipeSettings(learning_rate=1e-3)
    settings = Settings(benchmark=BenchmarkSettings(name="folder", data="data"), recipe=recipe)
    workspace = Workspace(root, settings)
    write_rows(root / "data", benchmark_rows(), picture)
    write_rows(root / "data/extra/held_out", held_out_rows(), picture)
    (root / "mmsurgery.toml").write_text(settings.to_toml())
    for place, name in enumerate(models):
        shutil.copytree(tiny, workspace.model_dir(name))
        change(workspace.model_dir(name), place)
    workspace.journal("apply", model="npo")
    return workspace
