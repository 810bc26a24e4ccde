"""README's command blocks run as they stand, in order, in one folder; the two make lines are CI's business."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.names import Address
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
    assert ran == 4
    assert (tmp_path / "diffs/vanilla..npo.svg").exists()
    assert (tmp_path / "masks/upper.safetensors").exists()


def published_checkpoint(folder: Path) -> None:
    """A checkpoint in the published layout: the shipped vanilla model, beside the files `init` made."""
    target = folder / "checkpoints/llava-vanilla"
    shutil.copytree(folder / "models/base", target)
    shutil.copy(shipped.WEIGHTS / "llava/vanilla/model.safetensors", target)
    (target / "mmsurgery-run.json").unlink()


def test_mask_reader_of_the_format_page(tmp_path: Path) -> None:
    """The reader in docs/formats.md, which knows nothing of mmsurgery, agrees with ours."""
    page = (ROOT / "docs/formats.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (5, 7), "b.bias": (3,), "c.weight": (2, 0), "d": ()}
    parameters = {n: MaskParameter(s, Address("lm", 0, "norm"), pack(rng.random(s) > 0.5)) for n, s in shapes.items()}
    base = {"model_type": "llava", "model_sha256": "0"}
    Mask(rule="x", beta=None, estimator=None, mixture=None, modules="lm", parameters=parameters, base=base).save(
        tmp_path / "m.safetensors"
    )
    about, masks = space["read_mask"](tmp_path / "m.safetensors")
    ours = Mask.load(tmp_path / "m.safetensors")
    assert about["modules"] == ours.modules
    assert masks.keys() == set(ours.names)
    assert all(np.array_equal(masks[name], ours[name]) for name in ours.names)
