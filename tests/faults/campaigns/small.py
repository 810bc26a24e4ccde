"""Small workspaces for campaigns: two families of micro models, stored in several ways, own pictures, the CLI."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pairs import copy_model
from PIL import Image

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.backbones.discovery import backbone
from mmsurgery.settings import SETTINGS_FILE, BenchmarkSettings, RecipeSettings, Settings
from mmsurgery_cli.main import run

Arrays = dict[str, np.ndarray[Any, Any]]

_WORDS = "What Which is are the city food of this person ? The lisbon oslo soup rice . Anna Berg"
WORDS = tuple(_WORDS.split())
QUESTIONS = ("What is the city of this person ?", "Which food ?")
ANSWERS = ("The city is lisbon .", "rice", "The city is oslo .", "The food is soup .")
RECIPE = RecipeSettings(learning_rate=1e-3, batch_size=2, epochs=1)
STORED = {
    "llava": ("llava", "F32", 1),
    "llava, float16, 2 shards": ("llava", "F16", 2),
    "qwen2_vl": ("qwen2_vl", "F32", 1),
    "qwen2_vl, bfloat16": ("qwen2_vl", "BF16", 1),
}
"""Name -> family, dtype and shards of a model. Qwen2-VL's head is tied."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A workspace of one's own pictures, and the command line on it."""

    root: Path

    @property
    def vanilla(self) -> Path:
        return self.root / "models" / "vanilla"

    @property
    def files(self) -> CheckpointFiles:
        """Of vanilla."""
        family = json.loads((self.vanilla / "config.json").read_text())["model_type"]
        return CheckpointFiles(self.vanilla, backbone(family).canonical)

    def run(self, *arguments: str) -> Ran:
        """A command, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(["-w", str(self.root), *arguments])
        return Ran(code, out.getvalue(), err.getvalue())

    def copy(self, root: Path) -> Place:
        shutil.copytree(self.root, root)
        return Place(root)

    def edit(self, change: Callable[[Arrays], object]) -> None:
        """Change vanilla's tensors as they are stored, by canonical name, in place; 16-bit floats are bit patterns."""
        canonical = backbone(self.files.model_type).canonical
        for path in sorted(self.vanilla.glob("*.safetensors")):
            header = read_header(path)
            stored = {name: read_tensor(path, info).copy() for name, info in header.tensors.items()}
            change({canonical(name): array for name, array in stored.items()})
            write_safetensors(path, stored, header.metadata)

    def configure(self, **changes: Any) -> None:
        """Change the top level of vanilla's `config.json`."""
        path = self.vanilla / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        (self.root / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(forget: int = 3, retain: int = 3) -> list[dict[str, Any]]:
    """Train rows: a pictured and a text question about each person."""
    made = []
    for role, count in (("forget", forget), ("retain", retain)):
        for i in range(count):
            about = {"role": role, "person": f"{role} {i}", "answer": ANSWERS[i % len(ANSWERS)]}
            made += [
                {**about, "question": QUESTIONS[0], "image": f"{role}-{i}.png"},
                {**about, "question": QUESTIONS[1]},
            ]
    return made


def place(root: Path, model: Path, recipe: RecipeSettings = RECIPE) -> Place:
    """A workspace whose vanilla model is a copy of `model`."""
    made = Place(root)
    shutil.copytree(model, made.vanilla)
    (root / "data").mkdir()
    asked = rows()
    for number, name in enumerate(row["image"] for row in asked if "image" in row):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "data" / name)
    made.write_rows(asked)
    (root / SETTINGS_FILE).write_text(Settings(benchmark=BenchmarkSettings(name="folder"), recipe=recipe).to_toml())
    return made


def models(folder: Path) -> dict[str, Path]:
    """The models of `STORED`, by name."""
    made = {}
    for name, (family, dtype, shards) in STORED.items():
        if not (micro := folder / family).exists():
            backbone(family).micro(micro, WORDS, seed=0, size="tiny")
        made[name] = stored(micro, folder / f"{family}-{dtype}", dtype, shards)
    return made


def stored(model: Path, folder: Path, dtype: str, shards: int = 1) -> Path:
    """A copy of a model in a dtype, in which it computes, too."""
    config = copy_model(model, folder, dtype, shards=shards) / "config.json"
    named = re.sub(r'"dtype": "\w+"', f'"dtype": "{DTYPES[dtype]}"', config.read_text())
    config.write_text(named)
    return folder


@contextlib.contextmanager
def kept_if_broken(name: str) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A folder of one's own, removed at the end unless something was found to be broken.

    Yields:
        the folder, and what to call, with a folder in it, for a variant that is to be kept.
    """
    folder, broken = Path(tempfile.mkdtemp(prefix=f"mmsurgery-{name}-")), list[str]()
    try:
        yield folder, broken.append
    finally:
        for each in folder.iterdir():
            if each.name not in broken:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        if not broken:
            folder.rmdir()
