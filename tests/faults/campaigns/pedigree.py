"""Promise 9: a byte that changed anywhere upstream of a number is found, and what it is in is named."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from campaigns import small
from campaigns.row import Row

from mmsurgery.artifacts.tensors import read_header

CHAIN = (
    ("saliency", "--set", "forget,preserve"),
    ("mask", "--beta", "0.5", "--modules", "lm,connector"),
    ("apply", "--method", "ga_diff", "--mask", "default", "--epochs", "1", "--name", "unlearned"),
    ("eval", "vanilla", "unlearned"),
    ("diff", "vanilla", "unlearned"),
)
QUESTIONS = [
    {"role": role, "use": "test", "person": f"{role} {i}", "answer": "soup", "options": ["soup", "rice"], **asked}
    for role in ("forget", "retain")
    for i in range(3)
    for asked in ({"question": "Which food ?", "image": f"{role}-{i}.png"}, {"question": "What is the food ?"})
]
"""What every number of the chain's end is about."""
_PICTURES = (".svg", ".png")


def workspace(root: Path, model: Path) -> small.Place:
    """The whole chain on a micro model."""
    place = small.place(root, model)
    place.write_rows([*small.rows(), *QUESTIONS])
    for command in CHAIN:
        ran = place.run(*command)
        assert ran.code == 0, ran.err
    return place


def upstream(place: small.Place) -> list[Path]:
    """Every file that a number of the workspace depends on: all, but for settings, journal, figures drawn from what
    is there and tensors that no model has."""
    files = [path for path in sorted(place.root.rglob("*")) if path.is_file()]
    data = place.root / "data"
    return [
        path
        for path in files
        if path.parent != place.root and (path.suffix not in _PICTURES or path.is_relative_to(data))
    ]


def named(place: small.Place, path: Path, said: str) -> bool:
    """Whether an error names the artifact that a file belongs to, what was made of it, or the row of a picture."""
    words = [path.name, path.stem.partition(".")[0], path.relative_to(place.root).parts[1]]
    words += ["rows.jsonl"] if path.suffix in _PICTURES else []
    if path.is_relative_to(
        place.root / "data"
    ):  # another answer is as good a row as before: what was made of it is named
        words += ["measured on other data", "about other items", "trained on other"]
    return any(word in said for word in words)


def run(
    seed: int, count: int, report: Callable[[str], None], families: Sequence[str] = ("llava", "qwen2_vl")
) -> list[Row]:
    """`count` bytes, shared over the families."""
    begin, rng, missed, tried = time.monotonic(), random.Random(seed), list[str](), 0
    with small.kept_if_broken("pedigree") as (folder, broken):
        models = small.models(folder / "models")
        for family in families:
            place = workspace(folder / family, models[family])
            assert place.run("verify").code == 0
            files = upstream(place)
            for number in range(count // len(families)):
                path = files[number % len(files)] if number < len(files) else rng.choice(files)
                whole = path.read_bytes()
                start = 8 + read_header(path).bytes if path.suffix == ".safetensors" else 0
                at, bit = rng.randrange(start, len(whole)), 1 << rng.randrange(8)
                path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
                ran = place.run("verify")
                tried += 1
                if ran.code not in (3, 4, 5) or not named(place, path, ran.err) or "Traceback" in ran.err:
                    missed.append(f"{family}: {path.relative_to(place.root)} byte {at} bit {bit}: {ran.code} {ran.err}")
                    report(missed[-1])
                path.write_bytes(whole)
        if missed:
            broken(place.root.name)
    figure = f"{tried - len(missed)} of {tried} found and named"
    return [Row(9, "one byte changed upstream of a number", figure, not missed, time.monotonic() - begin)]
