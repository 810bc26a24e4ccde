"""Entry points of installed distributions, looked through once."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.backbones.discovery import entry_points

GROUP = "mmsurgery.test"


def _install(folder: Path, name: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = module:thing\n")
    os.utime(folder, (1, 10**9 + len(list(folder.iterdir()))))  # as if the clock were fine enough


def test_folders_are_looked_through_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(group: str) -> list[metadata.EntryPoint]:
        asked.append(group)
        found: list[metadata.EntryPoint] = []
        for each in metadata.distributions(path=[str(tmp_path)]):
            found += each.entry_points.select(group=group)
        return found

    monkeypatch.setattr(metadata, "entry_points", read)
    monkeypatch.syspath_prepend(tmp_path)

    def names() -> list[Any]:
        return sorted(point.name for point in entry_points(GROUP))

    _install(tmp_path, "one")
    assert names() == names() == ["one"]
    assert asked == [GROUP]
    _install(tmp_path, "other")
    assert names() == ["one", "other"]
    assert asked == [GROUP, GROUP]


def test_a_place_that_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path / "nowhere")
    assert entry_points(GROUP) == ()
