"""Artifacts written under one release of transformers are read, applied and verified under another.

`make test-releases`: releases are installed beside the environment, into pytest's cache, from the package index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.releases, pytest.mark.timeout(600)]

PINNED = metadata.version("transformers")
RELEASES = {
    "5.10.4": ("tokenizers==0.22.2", "huggingface_hub==1.33.0", "httpx==0.28.1", "httpcore==1.0.9", "certifi"),
    "5.18.0": (),
    PINNED: (),
}
"""Release -> what it needs that the environment has in versions it does not take, or not at all."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> dict[str, Path | None]:
    """Release -> folder to put first on the path; None for the environment's own."""
    found: dict[str, Path | None] = {PINNED: None}
    for release, needed in RELEASES.items():
        if release == PINNED:
            continue
        folder = Path(request.config.cache.mkdir(f"transformers-{release}"))  # type: ignore[union-attr]
        if not (folder / "complete").exists():
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(folder)]
            subprocess.run([*command, f"transformers=={release}", *needed], check=True)
            (folder / "complete").touch()
        found[release] = folder
    return found


def chain(what: str, folder: Path, release: str, site: Path | None) -> dict[str, Any]:
    path = os.pathsep.join(map(str, [*([] if site is None else [site]), ROOT, ROOT / "cli", ROOT / "plugins"]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("chain.py")), what, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["transformers"] == release
    return dict(found["families"])


@pytest.fixture(scope="module")
def written(
    installed: dict[str, Path | None], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Release -> folder of what it wrote, and what it says of it."""
    made = {}
    for release, site in installed.items():
        folder = tmp_path_factory.mktemp(f"by-{release}")
        made[release] = folder, chain("write", folder, release, site)
    return made


@pytest.mark.parametrize("reader", RELEASES)
@pytest.mark.parametrize("writer", RELEASES)
def test_written_under_one_release_used_under_another(
    writer: str, reader: str, written: dict[str, Any], installed: dict[str, Path | None], tmp_path: Path
) -> None:
    folder, said = written[writer]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert chain("read", tmp_path, reader, installed[reader]) == said


def test_names_are_the_same_under_all(written: dict[str, Any]) -> None:
    """Weights are not: 5.10 draws LLaVA's in another order from the same seed."""
    names = {json.dumps({f: said["names"] for f, said in each.items()}) for _, each in written.values()}
    assert len(names) == 1
