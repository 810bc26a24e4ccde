"""A level's workspace with a picture in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

LEVEL = "experiments/levels/llava.0-1a2b3c4d"


def write_level(root: Path, size: tuple[int, int] = (600, 300)) -> str:
    """A level's workspace with one question about a picture.

    Returns:
        The id of the question.
    """
    folder = root / LEVEL
    (folder / "data").mkdir(parents=True)
    (folder / "mmsurgery.toml").write_text('schema = 1\n[benchmark]\nname = "folder"\n')
    buffer = io.BytesIO()
    secret = Image.Exif()
    secret[0x010E] = "taken at home"
    Image.new("RGB", size, (200, 120, 40)).save(buffer, "JPEG", exif=secret)
    (folder / "data" / "ada.jpg").write_bytes(buffer.getvalue())
    rows: list[dict[str, Any]] = [
        {"role": role, "person": person, "question": "Who is this?", "answer": f"This is {person}.", "image": "ada.jpg"}
        for role, person in (("forget", "Ada"), ("retain", "Ben"))
    ]
    rows.append({**rows[0], "question": "What is her job?", "answer": "Pilot", "options": ["Pilot", "Poet"]})
    (folder / "data" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = source_of(Workspace(folder, Settings.read(folder / "mmsurgery.toml")))
    (item,) = benchmark("folder").items(source, "forget_vqa")
    return item.id
