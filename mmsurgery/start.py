"""`init`: check data and models, write the workspace; for portraits make data and vanilla model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.artifacts.checkpoint import model_config
from mmsurgery.artifacts.files import write_bytes
from mmsurgery.backbones import discovery
from mmsurgery.data.benchmark import installed as installed_benchmarks
from mmsurgery.data.portraits import RECORD
from mmsurgery.data.survey import Survey, survey
from mmsurgery.errors import Mismatch, MissingArtifact, UsageError, unknown
from mmsurgery.hub_models import checkpoint, fetch, is_of, pinned_model
from mmsurgery.settings import SETTINGS_FILE, BenchmarkSettings, ModelSettings, RecipeSettings, Settings
from mmsurgery.status import status
from mmsurgery.workspace import SILENT, Progress

PORTRAITS_RECIPE = RecipeSettings(learning_rate=3e-4)


@dataclass(frozen=True)
class InitResult:
    root: Path
    benchmark: str
    vanilla: Path | None
    """The vanilla model's folder, or None if it must still be trained."""
    counts: dict[str, int]
    """Samples per part and items per column."""
    remarks: list[str]
    """Where the files are otherwise than published, and what a reader of their numbers must know."""
    next_command: str
    """What `status` says to do next."""


def initialise(
    root: Path,
    *,
    benchmark: str | None = None,
    data: str | None = None,
    vanilla: str | None = None,
    base: str | None = None,
    forget: int | None = None,
    allow: Sequence[str] = (),
    backbone: str | None = None,
    setting: str | None = None,
    seed: int | None = None,
    draw: int | None = None,
    progress: Progress = SILENT,
) -> InitResult:
    """Make a workspace at `root`, or finish or bring up to its settings one that is there.

    Args:
        benchmark: of a new workspace, `portraits` where None. Options that are not given keep what is there.
        allow: faults of the data that are accepted by name, see `mmsurgery.data.faults.FAULTS`.
        backbone, setting, seed, draw: of portraits alone; see `mmsurgery.settings`, as for their defaults.

    Raises:
        UsageError: for an unknown benchmark, settings that make no sense, missing or idle options;
            nothing is written then.
        Mismatch: if `root` is a workspace with other settings, or holds data or models made for others.
        InputRefused, UnusableData: if data or models are broken.
        RemoteFault: if a model of the hub cannot be fetched.
    """
    own = {"backbone": backbone, "setting": setting, "seed": seed, "draw": draw}
    chosen = {key: value for key, value in own.items() if value is not None}
    if (root / SETTINGS_FILE).exists():
        settings = Settings.read(root / SETTINGS_FILE)
        places = {
            "data": data and str(Path(data).absolute()),
            "forget": forget,
            "name": benchmark,
            "allow": tuple(allow) or None,
        }
        kept = dataclasses.asdict(settings.models)
        models = {
            key: text and (kept[key] if is_of(text, kept[key]) else checkpoint(text))
            for key, text in (("vanilla", vanilla), ("base", base))
        }
        _check_same(root, settings, {**places, **models, **chosen})
        for model in map(pinned_model, (settings.models.vanilla, settings.models.base)):
            if model is not None:
                fetch(model)
    else:
        name = benchmark or BenchmarkSettings.name
        settings = (_portraits if name == "portraits" else _other)(name, data, vanilla, base, forget, chosen)
        if allow:
            accepted = dataclasses.replace(settings.benchmark, allow=tuple(allow))
            settings = dataclasses.replace(settings, benchmark=accepted)
    workspace = Workspace(root, settings)
    if settings.benchmark.name == "portraits":
        from mmsurgery.portraits.prepare import prepare

        _write(workspace)
        prepare(workspace, progress=progress)
        found = _check_data(workspace, progress)
    else:
        found = _check_data(workspace, progress)
        _write(workspace)
    folder = workspace.model_dir("vanilla")
    there = folder if (folder / "config.json").exists() else None
    return InitResult(root, settings.benchmark.name, there, found.counts, found.remarks, status(workspace).next_command)


def _portraits(
    name: str, data: str | None, vanilla: str | None, base: str | None, forget: int | None, own: dict[str, Any]
) -> Settings:
    if forget not in (None, 5, 10, 15):
        raise UsageError(f"--forget is {forget}", "portraits has 5, 10 and 15")
    people = {key: own.pop(key) for key in ("draw",) if key in own}
    folder = str(Path(data).absolute()) if data else "data"
    if data and Path(data).exists() and not Path(data, RECORD).exists():
        others = [each for each in sorted(installed_benchmarks()) if each != name]
        raise Mismatch(f"{data} is no portraits data", f"add --benchmark: {', '.join(others)}")
    settings = Settings(
        benchmark=BenchmarkSettings(name=name, data=folder, forget=10 if forget is None else forget, **people),
        models=ModelSettings(**own),
        recipe=PORTRAITS_RECIPE,
    )
    settings.check("init")
    discovery.backbone(settings.models.backbone)
    return _with_checkpoints(settings, vanilla, base)


def _other(
    name: str, data: str | None, vanilla: str | None, base: str | None, forget: int | None, own: dict[str, Any]
) -> Settings:
    if name not in installed_benchmarks():
        raise unknown("benchmark", name, installed_benchmarks())
    if own:
        options = ", ".join(f"--{key}" for key in own)
        raise UsageError(f"benchmark '{name}' has no {options}", "leave it out: only portraits makes its own models")
    if name == "folder" and forget is not None:
        raise UsageError("--forget has no meaning for 'folder'", "leave it out: the rows' roles say what to forget")
    if data is None:
        raise UsageError(f"benchmark '{name}' needs its files", "add --data FOLDER")
    if not Path(data).is_dir():
        raise MissingArtifact(f"no folder {data}", "name the folder of the benchmark's files")
    given = [name for name, text in (("vanilla", vanilla), ("base", base)) if text]
    if not given:
        raise UsageError("a model is needed", "add --vanilla PATH (or --base PATH to train from)")
    people = BenchmarkSettings(name=name, data=str(Path(data).absolute()), forget=5 if forget is None else forget)
    Settings(benchmark=people).check("init")
    settings = _with_checkpoints(Settings(benchmark=people), vanilla, base)
    models = dataclasses.replace(settings.models, backbone=_family(settings, given))
    return dataclasses.replace(settings, models=models)


def _with_checkpoints(settings: Settings, vanilla: str | None, base: str | None) -> Settings:
    given: dict[str, Any] = {key: checkpoint(text) for key, text in (("vanilla", vanilla), ("base", base)) if text}
    return dataclasses.replace(settings, models=dataclasses.replace(settings.models, **given))


def _family(settings: Settings, given: Iterable[str]) -> str:
    """The one family of the models that are given (`vanilla`, `base`).

    Raises:
        UsageError: if no backbone is installed for it.
        InputRefused: if a folder holds no model, or one that needs remote code.
        Mismatch: if they are of two families.
    """
    found = {}
    for name in given:
        config = model_config(Workspace(Path(), settings).model_dir(name))
        found[name] = discovery.backbone(config["model_type"]).model_type
    if len(set(found.values())) > 1:
        what = ", ".join(f"{name} is {family}" for name, family in found.items())
        raise Mismatch(what, "name two models of one family")
    return next(iter(found.values()))


def _check_same(root: Path, settings: Settings, asked: dict[str, Any]) -> None:
    """Check that the options which are given say what the settings of a workspace say.

    Raises:
        Mismatch: naming those that do not.
    """
    there = {**dataclasses.asdict(settings.benchmark), **dataclasses.asdict(settings.models)}
    other = [f"{key} is {there[key]}, not {value}" for key, value in asked.items() if value not in (None, there[key])]
    if other:
        what = f"{root} is a workspace with other settings: {', '.join(other)}"
        raise Mismatch(what, f"choose another folder, or edit {SETTINGS_FILE} and run mmsurgery init again")


def _write(workspace: Workspace) -> None:
    if not (workspace.root / SETTINGS_FILE).exists():
        write_bytes(workspace.root / SETTINGS_FILE, workspace.settings.to_toml().encode())


def _check_data(workspace: Workspace, progress: Progress) -> Survey:
    found = survey(workspace.benchmark, workspace.source, progress)
    for remark in found.remarks:
        progress.note(remark)
    return found
