"""Every link of a chain is held against what it names, in short; the long form is `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaigns import pedigree, small


def test_a_byte_changed_upstream_is_found_and_named() -> None:
    said: list[str] = []
    rows = pedigree.run(9, 8, said.append, families=("llava",))
    assert not said
    assert [row.kept for row in rows] == [True]


def test_a_change_that_left_no_trace_in_times_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was remembered of a file is not believed."""
    models = small.models(tmp_path / "models")
    place = small.place(tmp_path / "here", models["llava"])
    monkeypatch.setattr("mmsurgery.artifacts.checkpoint.file_identity", lambda path: [path.stat().st_size])
    for command in pedigree.CHAIN[:2]:
        assert place.run(*command).code == 0
    assert place.run("verify").code == 0
    weights = place.vanilla / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert place.run("mask", "--beta", "0.5", "--modules", "lm,connector").code == 0
    ran = place.run("verify")
    assert ran.code == 4
    assert "was measured on model" in ran.err
