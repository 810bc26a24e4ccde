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


@pytest.mark.parametrize(("role", "part"), [("forget", "forget_vqa"), ("retain", "retain_vqa")])
def test_data_that_a_model_unlearned_with_are_held_against_those_of_today(tmp_path: Path, role: str, part: str) -> None:
    """Without saliency and mask, which would be found out first; another request is no fault."""
    models = small.models(tmp_path / "models")
    place = small.place(tmp_path / "here", models["llava"])
    assert place.run("apply", "--method", "ga_diff", "--epochs", "1", "--name", "made").code == 0
    assert place.run("verify").code == 0
    rows = small.rows()
    pictured = next(row for row in rows if row["role"] == role and "image" in row)
    pictured["answer"] = "rice" if pictured["answer"] != "rice" else "soup"
    place.write_rows(rows)
    ran = place.run("verify")
    assert ran.code == 4
    assert f"model 'made' was made with other data than there are now: {part} - next: make 'made' again" in ran.err
    place.write_rows([{**row, "person": row["person"].replace("forget 0", "forget 7")} for row in small.rows()])
    assert place.run("verify").code == 0
