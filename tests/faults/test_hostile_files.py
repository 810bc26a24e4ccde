"""Hostile files run nothing, open nothing else and are refused with one line; the same in `make faults`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from campaigns import hostile
from campaigns.scene import Scene, scenes

FEW = 40


def test_reading_runs_nothing_and_opens_nothing_else() -> None:
    """Promise 2; cases 3 to 6, 10 to 15, 19 to 23, 86: a few fixed files and others in each run, all of them by
    `make faults`."""
    assert hostile.FILES.keys() >= set(hostile.ALWAYS)
    said: list[str] = []
    (row,) = hostile.run(seed=random.randrange(10**6), count=FEW, report=said.append)
    assert row.kept, said


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    return scenes(tmp_path_factory.mktemp("scenes"))


def runs_code(scene: Scene) -> tuple[str, ...]:
    scene.marker.mkdir()
    return ("inspect", "nothing")


def opens_a_bait(scene: Scene) -> tuple[str, ...]:
    return ("inspect", str(scene.baits / "x.safetensors"))


def is_harmless(scene: Scene) -> tuple[str, ...]:
    return ("inspect", "theirs")


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        (runs_code, "code was run"),
        (opens_a_bait, "opened .*x.safetensors"),
        (is_harmless, "exit code 0"),
    ],
)
def test_what_a_command_does_is_seen(
    plant: Callable[[Scene], tuple[str, ...]], seen: str, scene: Callable[[str], Scene]
) -> None:
    """The campaign can fail."""
    found = hostile.fault(plant, scene(plant.__name__))
    assert found is not None
    assert re.search(seen, found)
