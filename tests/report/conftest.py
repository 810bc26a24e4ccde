"""Workspaces with invented artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from example_artifacts import ACCURACIES, write_diff, write_mask, write_model, write_saliency, write_scores
from example_extras import cases, deviations, tuned
from example_level import write_level
from example_results import results

from mmsurgery.artifacts.files import write_json
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

BACKBONES = ("llava", "qwen2_vl")


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    root = tmp_path / "ws"
    root.mkdir()
    (root / "mmsurgery.toml").write_text("schema = 1\n")
    return Workspace(root, Settings())


@pytest.fixture
def full(empty: Workspace) -> Workspace:
    """One or more artifacts of each kind; the experiment shows all that any experiment may show."""
    extras = {"deviations": deviations(BACKBONES[:1]), "cases": cases(BACKBONES[:1]), "tuned": tuned(BACKBONES[:1])}
    write_json(empty.path("experiments", "table1", "results.json"), results(**extras))
    for name, (forget, kept) in ACCURACIES.items():
        write_scores(empty.eval_path(name), name, forget, kept)
    write_model(empty.model_dir("npo"), "default")
    write_mask(empty.mask_path("default"))
    write_saliency(empty.saliency_dir("forget_vqa"))
    write_diff(empty.diff_path("vanilla", "npo"))
    return empty


@pytest.fixture
def pictured(empty: Workspace) -> Workspace:
    """An experiment with cases, one of them about a picture that is there, and a figure of deviations."""
    ids = (write_level(empty.root), "text")
    extras = {"deviations": deviations(BACKBONES[:1]), "cases": cases(BACKBONES[:1], ids)}
    write_json(empty.path("experiments", "cases", "results.json"), results("cases", BACKBONES[:1], **extras))
    return empty


@pytest.fixture
def page_of() -> Callable[[Workspace], str]:
    """Write the report and read it."""
    from mmsurgery.report import write_report

    return lambda workspace: write_report(workspace).path.read_text(encoding="utf-8")
