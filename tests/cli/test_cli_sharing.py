"""`export` and `import` as a person meets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DOWN = "model.language_model.layers.0.mlp.down_proj.weight"


def test_import_and_export(command: Callable[..., Any], tmp_path: Path) -> None:
    torch.save({"weight": {DOWN: torch.ones(96, 192, dtype=torch.bool)}}, tmp_path / "m.pt")
    made = command("import", str(tmp_path / "m.pt"), "--name", "cli_theirs")
    assert made.code == 0, made.err
    assert "18,432 of 423,648" in made.out
    assert "72 parameters" in made.err
    out = command("export", "cli_theirs", "--format", "official", "--out", str(tmp_path / "o.pt"), "--json")
    assert out.document["path"] == str(tmp_path / "o.pt")
    assert command("export", "cli_theirs", "--format", "official", "--out", str(tmp_path / "o.pt")).out.count(
        "up to date"
    )
    shira = command("export", "cli_theirs", "--format", "shira", "--out", str(tmp_path / "shira"), "--json")
    assert (shira.code, shira.document["details"]["entries"]) == (0, 18432)
    wrong = command("import", str(tmp_path / "m.pt"), "--name", "other", "--base", "vanilla")
    assert (wrong.code, wrong.err) == (2, "error[2]: --base has no meaning for masks - next: leave it out\n")
    assert command("export", "vanilla", "--format", "official").code == 2
