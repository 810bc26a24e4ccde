"""README's command blocks run as they stand, in order, in one folder; the two make lines are CI's business."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmsurgery.portraits import shipped
from mmsurgery.portraits.files import write_data

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(sh|python)\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(600)
def test_blocks_run(tmp_path: Path) -> None:
    write_data(tmp_path / "MLLMU-Bench", 0)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for language, text in blocks():
        if text.startswith("make "):
            continue
        if "checkpoints/" in text:
            published_checkpoint(tmp_path)
        command = ["bash", "-e", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran == 5
    models = [(tmp_path / f"models/{name}/model.safetensors").read_bytes() for name in ("vanilla", "undone")]
    assert models[0] == models[1]
    assert (tmp_path / "diffs/vanilla..npo.svg").exists()
    assert (tmp_path / "masks/upper.safetensors").exists()


def test_results_are_those_of_the_results_page() -> None:
    table = [line for line in README.read_text().splitlines() if line.startswith("| ") and "(" in line and "-" in line]
    page = (ROOT / "docs/results.md").read_text().splitlines()
    numbers = [line for line in table if re.search(r"\d\.\d \(\d+-\d+\)", line)]
    assert len(numbers) >= 14
    assert [line for line in numbers if line not in page] == []


def published_checkpoint(folder: Path) -> None:
    """A checkpoint in the published layout: the shipped vanilla model, beside the files `init` made."""
    target = folder / "checkpoints/llava-vanilla"
    shutil.copytree(folder / "models/base", target)
    shutil.copy(shipped.WEIGHTS / "llava/vanilla/model.safetensors", target)
    (target / "mmsurgery-run.json").unlink()
