"""`status`: what a workspace holds and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.artifacts.files import read_json
from mmsurgery.data.benchmark import SETS, source_of
from mmsurgery.data.portraits import check_drawn_for
from mmsurgery.errors import Mismatch


@dataclass(frozen=True)
class Status:
    root: Path
    benchmark: str
    backbone: str
    models: list[str]
    saliency: list[str]
    masks: list[str]
    evals: list[str]
    diffs: list[str]
    chain: list[dict[str, Any]]
    """Per unlearned model: name, method, mask and the model it started from."""
    problems: list[str]
    """Data or models that were made for other settings, and what to do."""
    next_command: str


def status(workspace: Workspace) -> Status:
    """What is there, from the folders alone; no torch, no model."""
    settings = workspace.settings
    saliency = _names(workspace.path("saliency"), "*/manifest.json", lambda p: p.parent.name)
    evals = _names(workspace.path("evals"), "*.json", lambda p: p.stem)
    diffs = _names(workspace.path("diffs"), "*.json", lambda p: p.stem)
    models = workspace.models()
    chain, problems = [], _problems(workspace, models)
    for model in models:
        record = workspace.model_dir(model) / "mmsurgery-run.json"
        if record.is_file():
            run = read_json(record)
            chain.append({"model": model, **{key: run.get(key) for key in ("method", "mask", "start")}})
    return Status(
        root=workspace.root,
        benchmark=f"{settings.benchmark.name}, forget {settings.benchmark.forget} %",
        backbone=settings.models.backbone,
        models=models,
        saliency=saliency,
        masks=workspace.masks(),
        evals=evals,
        diffs=diffs,
        chain=[entry for entry in chain if entry["method"]],
        problems=[str(problem) for problem in problems],
        next_command=(problems[0].next_step if problems else None)
        or _next(models, saliency, workspace.masks(), evals, diffs),
    )


def _problems(workspace: Workspace, models: list[str]) -> list[Mismatch]:
    found = []
    checks: list[Callable[[], object]] = [partial(workspace.existing_model, model) for model in models]
    if workspace.settings.benchmark.name == "portraits" and workspace.data_dir.exists():
        checks.insert(0, partial(check_drawn_for, source_of(workspace)))
    for check in checks:
        try:
            check()
        except Mismatch as problem:
            found.append(problem)
    return found


def _names(folder: Path, pattern: str, name: Any) -> list[str]:
    return sorted(name(p) for p in folder.glob(pattern) if not name(p).startswith(".")) if folder.is_dir() else []


def _next(models: list[str], saliency: list[str], masks: list[str], evals: list[str], diffs: list[str]) -> str:
    if "vanilla" not in models:
        return "mmsurgery train vanilla"
    if not any(part in saliency for part in SETS["forget"]):
        return "mmsurgery saliency --set forget"
    if not masks:
        return "mmsurgery mask --beta 1 --modules lm,connector"
    unlearned = [model for model in models if model not in ("vanilla", "base", "gold", "reference")]
    if not unlearned:
        return "mmsurgery apply --method mmunlearner"
    if any(model not in evals for model in ["vanilla", *unlearned]):
        return "mmsurgery eval"
    if not diffs:
        return "mmsurgery diff"
    return "mmsurgery train gold" if "gold" not in models else "mmsurgery eval --json"
