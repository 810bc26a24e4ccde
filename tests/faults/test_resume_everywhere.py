"""Cases 51, 54, 66: an interrupted command goes on and ends with the bytes of an undisturbed one, on both backbones; by
other settings it is refused with the list of what changed; from a damaged snapshot it falls back and says so."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns import small, verbs
from failing_writes import FailingDisk

from mmsurgery.settings import SETTINGS_FILE

KEPT = {
    "saliency": "saliency/.resume-*/sample-*.safetensors",
    "train": "models/.resume-gold/step-*.safetensors",
    "apply": "models/.resume-npo/step-*.safetensors",
    "eval": "evals/.scoring/*/*_vqa.json",
}
"""Command -> what it keeps to go on from."""
LATER = (("qwen2_vl", "saliency"), ("qwen2_vl", "eval"))
"""What goes on the same way with either family, and takes seconds: by `make test-slow`."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> small.Place:
    """Of a family; nothing of what the commands make is there."""
    made = verbs.chain(tmp_path_factory.mktemp("resume") / "ws", request.param)
    for path in ("saliency", "evals", "models/npo", "models/gold"):
        shutil.rmtree(made.root / path)
    return made


def with_threads(place: small.Place, threads: int) -> None:
    file = place.root / SETTINGS_FILE
    file.write_text(re.sub(r"threads = \d+", f"threads = {threads}", file.read_text()))


CHANGES: dict[str, tuple[Callable[[small.Place], object], str]] = {
    "saliency": (lambda place: with_threads(place, 2), "threads 1 -> 2"),
    "train": (lambda place: verbs.write_recipe(place.root, epochs=1, learning_rate=0.5), "learning_rate 0.001 -> 0.5"),
    "apply": (lambda place: with_threads(place, 2), "threads 1 -> 2"),
    "eval": (lambda place: with_threads(place, 2), "threads 1 -> 2"),
}


def killed_at(place: small.Place, verb: str, which: int) -> list[Path]:
    """Kill a command when it has the third of what it keeps in hand; the two before."""
    begun: list[str] = []

    def dies() -> int:
        disk = FailingDisk(place.root)
        real = disk.happens

        def happens(kind: str, file: object, *rest: object) -> None:
            real(kind, file, *rest)  # type: ignore[arg-type]
            if kind == "rename" and Path(str(file)).match(KEPT[verb]):
                begun.append(kind)
                if len(begun) == which:
                    os._exit(9)

        disk.happens = happens  # type: ignore[method-assign]
        with disk:
            return verbs.command(place, verb, force=False).code

    assert verbs.ended(verbs.fork(dies)) == 9
    return sorted(place.root.glob(KEPT[verb]))


@pytest.mark.parametrize(
    ("place", "verb"),
    [
        pytest.param(family, verb, marks=pytest.mark.slow if (family, verb) in LATER else ())
        for family in verbs.FAMILIES
        for verb in KEPT
    ],
    indirect=["place"],
)
def test_goes_on_or_says_why_not(verb: str, place: small.Place, tmp_path: Path) -> None:
    whole, cut = place.copy(tmp_path / "whole"), place.copy(tmp_path / "cut")
    assert verbs.command(whole, verb, force=False).code == 0
    undisturbed = verbs.state(whole.root)
    kept = killed_at(cut, verb, 3 if verb != "eval" else 2)
    assert len(kept) == (2 if verb != "eval" else 1)
    mended, before = cut.copy(tmp_path / "changed"), verbs.state(cut.root)
    change, said = CHANGES[verb]
    change(mended)
    refused = verbs.command(mended, verb, force=False)
    assert (refused.code, refused.err.count("error[4]")) == (4, 1)
    assert f"holds an interrupted run with other {said} - next: " in refused.err
    assert {name for name, digest in verbs.state(mended.root).items() if before.get(name) != digest} <= {
        SETTINGS_FILE,
        "recipe.toml",
    }
    assert verbs.command(mended, verb).code == 0  # with --force
    data = kept[-1].read_bytes()  # a power cut: the name is on the disk, its last page is not (case 54)
    kept[-1].write_bytes(data[:-20] + bytes(20))
    resumed = verbs.command(cut, verb, force=False)
    assert resumed.code == 0
    assert re.search(rf"{re.escape(kept[-1].name)} is damaged and left out", resumed.err)
    assert ("going on after" in resumed.err) == (verb != "eval")
    assert verbs.state(cut.root) == undisturbed
    assert verbs.leftovers(cut.root) == []
