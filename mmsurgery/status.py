"""`status`: what a workspace holds and what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.saliency_map import recorded
from mmsurgery.data.benchmark import SETS, source_of
from mmsurgery.data.portraits import check_drawn_for
from mmsurgery.errors import GateMissed, InputRefused, Mismatch, MmsurgeryError
from mmsurgery.evaluate.acceptance import unknown_columns
from mmsurgery.evaluate.records import read_eval
from mmsurgery.experiments.metrics import METRICS, begun_by
from mmsurgery.hub_models import pinned_model
from mmsurgery.masks.stale import stale, vanilla_files
from mmsurgery.provenance import check_seal
from mmsurgery.saliency.shards import unfinished_shards
from mmsurgery.unlearn.interrupted import interrupted_trainings, train_command
from mmsurgery.unlearn.trained_models import stale_models


@dataclass(frozen=True)
class Status:
    root: Path
    benchmark: str
    backbone: str
    models: list[str]
    saliency: list[str]
    masks: list[str]
    patches: list[str]
    evals: list[str]
    """Models that were scored; under another protocol, or on an earlier request, as `official/MODEL`."""
    diffs: list[str]
    audits: list[str]
    """Models that were audited."""
    stability: list[str]
    """Masks that were built again from other measurements."""
    experiments: list[str]
    """Experiments with results; one that has begun and has none is among `unfinished`."""
    unfinished: list[str]
    """What was interrupted and goes on with the same command; a training says by which recipe."""
    chain: list[dict[str, Any]]
    """Per model that was made here, each after the one it was made from: model, start, method, mask, `request`
    (digest of the people it was made to forget, None if nobody), `people` (how many, None if not known)."""
    problems: list[str]
    """Data or models that were made for other settings, records that cannot be read, and what to do."""
    next_command: str


def status(workspace: Workspace) -> Status:
    """What is there, from the folders alone; no torch, no model."""
    settings = workspace.settings
    own = settings.benchmark.name == "folder"  # its rows say what to forget
    saliency = _names(workspace.path("saliency"), "*/manifest.json", lambda p: p.parent.name)
    evals = _names(workspace.path("evals"), "*.json", lambda p: p.stem)
    others = [p for p in workspace.path("evals").glob("**/*.json") if not any(part[0] == "." for part in p.parts[-4:])]
    others = [p for p in others if p.parent != workspace.path("evals")]
    diffs = _names(workspace.path("diffs"), "*.json", lambda p: p.stem)
    models = workspace.models()
    problems = [*_problems(workspace, models), *_damaged_results(workspace)]
    chain = _chain(workspace, models, problems)
    experiments = _names(workspace.path("experiments"), "*/results.json", lambda p: p.parent.name)
    unfinished = _unfinished(workspace)
    return Status(
        root=workspace.root,
        benchmark=settings.benchmark.name + ("" if own else f", forget {settings.benchmark.forget} %"),
        backbone=settings.models.backbone,
        models=models,
        saliency=saliency,
        masks=workspace.masks(),
        patches=workspace.patches(),
        evals=[*evals, *sorted(p.relative_to(workspace.path("evals")).with_suffix("").as_posix() for p in others)],
        diffs=diffs,
        audits=_names(workspace.path("audits"), "*.json", lambda p: p.stem),
        stability=_names(workspace.path("stability"), "*.json", lambda p: p.stem),
        experiments=experiments,
        unfinished=unfinished,
        chain=chain,
        problems=list(dict.fromkeys(str(problem) for problem in problems)),
        next_command=(problems[0].next_step if problems else None)
        or _next_experiment(workspace, models, saliency, experiments, unfinished)
        or _resumed(workspace, _next(workspace, models, saliency, evals, diffs)),
    )


def _read(path: Path, problems: list[MmsurgeryError]) -> dict[str, Any]:
    """A record, empty where there is none; one that cannot be read is a problem."""
    try:
        value = read_json(path) if path.is_file() else {}
    except InputRefused as problem:
        problems.append(problem)
        return {}
    return value if isinstance(value, dict) else {}


def _chain(workspace: Workspace, models: list[str], problems: list[MmsurgeryError]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        run = _read(workspace.model_dir(model) / RUN_FILE, problems)
        if run.get("method"):
            keys = ("start", "method", "mask", "request")
            found[model] = {"model": model, **{key: run.get(key) for key in keys}, "people": None}
    for entry in found.values():
        if not re.fullmatch("[0-9a-f]{64}", str(entry["request"])):
            entry["request"] = None
            continue
        people = _read(workspace.request_path(entry["request"]), problems).get("people")
        entry["people"] = len(people) if isinstance(people, list) else None
    ordered: list[dict[str, Any]] = []

    def follow(start: str) -> None:
        for entry in [entry for entry in found.values() if entry["start"] == start]:
            del found[entry["model"]]
            ordered.append(entry)
            follow(entry["model"])

    for root in [entry["start"] for entry in found.values() if entry["start"] not in found]:
        follow(root)
    return [*ordered, *found.values()]


def _unfinished(workspace: Workspace) -> list[str]:
    """Interrupted runs, by the folder of what they make."""
    trainings = interrupted_trainings(workspace.path("models"))
    runs = {p for room in ("models", "saliency") for p in workspace.path(room).glob(".resume-*")}
    runs -= {training.folder for training in trainings}
    found = {f"models/{training.model} by recipe {training.recipe}" for training in trainings}
    found |= {f"{p.parent.name}/{p.name.removeprefix('.resume-')}" for p in runs}
    found |= {f"evals/{p.name}" for p in workspace.path("evals").glob("**/.scoring/*")}
    begun = workspace.path("experiments").glob("*/metrics.jsonl")
    found |= {f"experiments/{p.parent.name}" for p in begun if not p.with_name("results.json").exists()}
    return sorted(found)


def _damaged_results(workspace: Workspace) -> list[MmsurgeryError]:
    found: list[MmsurgeryError] = []
    for path in sorted(workspace.path("experiments").glob("*/results.json")):
        try:
            check_seal(read_json(path), str(path), kind="experiment")
        except Mismatch as problem:
            found.append(problem)
        except InputRefused as problem:
            found.append(InputRefused(problem.what, _experiment(path.parent)))
    return found


def _next_experiment(
    workspace: Workspace, models: list[str], saliency: list[str], experiments: list[str], unfinished: list[str]
) -> str | None:
    """What goes on in a workspace that experiments alone were run in, None in any other."""
    if "vanilla" not in models or saliency:
        return None
    begun = [name for name in unfinished if name.startswith("experiments/")]
    if begun:
        return _experiment(workspace.root / begun[0])
    return "mmsurgery report" if experiments else None


def _experiment(folder: Path) -> str:
    """What runs an experiment again, with the options that it was last run with."""
    if command := begun_by(folder / METRICS):
        return command
    name = folder.name.removesuffix("-tuned")
    return f"mmsurgery experiment {name}{'' if name == folder.name else ' --tune'}"


def _resumed(workspace: Workspace, command: str) -> str:
    """A command; one that trains a model whose training was interrupted, by the recipe it was begun with."""
    for training in interrupted_trainings(workspace.path("models")):
        if command == train_command(training.model, None):
            return training.command
    return command


def _problems(workspace: Workspace, models: list[str]) -> list[MmsurgeryError]:
    found: list[MmsurgeryError] = []
    checks: list[Callable[[], object]] = [partial(workspace.existing_model, model) for model in models]
    if workspace.settings.benchmark.name == "portraits" and workspace.data_dir.exists():
        checks.insert(0, partial(check_drawn_for, source_of(workspace)))
    for check in checks:
        try:
            check()
        except MmsurgeryError as problem:
            found.append(problem)
    if found:
        return found
    try:
        _vanilla_known(workspace)
    except MmsurgeryError as problem:
        found.append(problem)
    return [*stale_models(workspace), *found, *stale(workspace)]


def _vanilla_known(workspace: Workspace) -> None:
    """Check what the scores of vanilla say of it, if it was scored: who knows nothing forgets nothing.

    Raises:
        InputRefused: if they are damaged.
        Mismatch: if they are of other weights.
        GateMissed: naming the columns that it does not know; not on portraits, which trains it until it does.
    """
    path = workspace.eval_path("vanilla")
    if not path.exists() or "vanilla" not in workspace.models():
        return
    record, digest = read_eval(path), vanilla_files(workspace).digest()
    if recorded(record["provenance"], "model_sha256") != digest:
        what = f"{path} holds scores of other weights than vanilla's {digest[:12]}"
        raise Mismatch(what, "mmsurgery eval vanilla --accept --force")
    unknown = unknown_columns(record["columns"])
    if unknown and workspace.settings.benchmark.name != "portraits":
        ours = workspace.model_dir("vanilla").parent == workspace.path("models")
        again = "mmsurgery train vanilla --force, by a longer --recipe, or check" if ours else "check"
        raise GateMissed(
            f"vanilla does not know what it should: {'; '.join(unknown.values())}",
            f"{again} that it was trained on these people",
        )


def _names(folder: Path, pattern: str, name: Any) -> list[str]:
    return sorted(name(p) for p in folder.glob(pattern) if not name(p).startswith(".")) if folder.is_dir() else []


def _next(workspace: Workspace, models: list[str], saliency: list[str], evals: list[str], diffs: list[str]) -> str:
    if "vanilla" not in models:
        gone = pinned_model(workspace.settings.models.vanilla)
        return f"mmsurgery init {workspace.root}" if gone else "mmsurgery train vanilla"
    scored = any(workspace.path("evals").glob("**/vanilla.json"))  # under whichever protocol
    if workspace.settings.benchmark.name != "portraits" and not scored:
        return "mmsurgery eval vanilla --accept"
    for name, parts in SETS.items():
        for part in parts:
            if left := unfinished_shards(workspace, part):
                return f"mmsurgery saliency --set {name} --shard {left[0]}"
    if not any(part in saliency for part in SETS["forget"]):
        return "mmsurgery saliency --set forget"
    if not workspace.masks():
        return "mmsurgery mask --beta 1 --modules lm,connector"
    unlearned = [model for model in models if model not in ("vanilla", "base", "gold", "reference")]
    if not unlearned:
        return "mmsurgery apply --method mmunlearner"
    if any(model not in evals for model in ["vanilla", *unlearned]):
        return "mmsurgery eval"
    if not diffs:
        return "mmsurgery diff"
    trains = (workspace.model_dir("base") / "config.json").is_file()
    return "mmsurgery train gold" if trains and "gold" not in models else "mmsurgery report"
