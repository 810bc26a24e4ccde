"""`init`: check data and models, write the workspace; for portraits make data and vanilla model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.api import Workspace
from mmsurgery.artifacts.files import read_json, write_bytes
from mmsurgery.backbones import discovery
from mmsurgery.data.benchmark import installed as installed_benchmarks
from mmsurgery.data.leakage import check_leakage, check_overlap, portrait_reuse
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import Mismatch, MissingArtifact, RemoteFault, UsageError, unknown
from mmsurgery.workspace import (
    SETTINGS_FILE,
    SILENT,
    BenchmarkSettings,
    ModelSettings,
    Progress,
    RecipeSettings,
    Settings,
)

PORTRAITS_RECIPE = RecipeSettings(learning_rate=3e-4)
CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class InitResult:
    root: Path
    benchmark: str
    vanilla: Path | None
    """The vanilla model's folder, or None if it must still be trained."""
    counts: dict[str, int]
    """Samples per part and items per column."""


def initialise(
    root: Path,
    *,
    benchmark: str = "portraits",
    data: str | None = None,
    vanilla: str | None = None,
    base: str | None = None,
    forget: int | None = None,
    backbone: str | None = None,
    setting: str = "saturated",
    seed: int = 0,
    draw: int = 0,
    progress: Progress = SILENT,
) -> InitResult:
    """Make a workspace at `root`, or finish one that was begun with the same settings.

    Raises:
        UsageError: for an unknown benchmark or missing options.
        Mismatch: if `root` is a workspace with other settings.
        InputRefused, UnusableData: if data or models are broken.
    """
    if benchmark not in installed_benchmarks():
        raise unknown("benchmark", benchmark, installed_benchmarks())
    if benchmark == "portraits":
        settings = _portraits(forget, backbone, setting, seed, draw, data, vanilla, base)
    else:
        if data is None:
            raise UsageError(f"benchmark '{benchmark}' needs its files", "add --data FOLDER")
        if vanilla is None and base is None:
            raise UsageError("a model is needed", "add --vanilla PATH (or --base PATH to train from)")
        settings = Settings(
            benchmark=BenchmarkSettings(name=benchmark, data=str(Path(data).absolute()), forget=forget or 5),
            models=ModelSettings(
                backbone=_family(vanilla or base or ""),
                base=_checkpoint(base) if base else "models/base",
                vanilla=_checkpoint(vanilla) if vanilla else "models/vanilla",
                seed=seed,
            ),
        )
    workspace = _write(root, settings)
    if benchmark == "portraits":
        from mmsurgery.portraits.prepare import prepare

        prepare(workspace, progress=progress)
    counts = _check_data(workspace, progress)
    folder = workspace.model_dir("vanilla")
    return InitResult(root, benchmark, folder if (folder / "config.json").exists() else None, counts)


def _portraits(
    forget: int | None,
    backbone: str | None,
    setting: str,
    seed: int,
    draw: int,
    data: str | None,
    vanilla: str | None,
    base: str | None,
) -> Settings:
    family = backbone or "llava"
    discovery.backbone(family)
    if forget not in (None, 5, 10, 15):
        raise UsageError(f"--forget is {forget}", "portraits has 5, 10 and 15")
    return Settings(
        benchmark=BenchmarkSettings(
            name="portraits", data=str(Path(data).absolute()) if data else "data", forget=forget or 10, draw=draw
        ),
        models=ModelSettings(
            backbone=family,
            base=_checkpoint(base) if base else "models/base",
            vanilla=_checkpoint(vanilla) if vanilla else "models/vanilla",
            setting=setting,
            seed=seed,
        ),
        recipe=PORTRAITS_RECIPE,
    )


def _checkpoint(text: str) -> str:
    """An absolute local folder for a path or hub id (`org/name` or `org/name@revision`)."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    if text.count("/") != 1 or folder.is_absolute() or text.startswith("."):
        raise MissingArtifact(f"no folder {text}", "name a checkpoint folder or a hub id such as org/name")
    from huggingface_hub import snapshot_download

    name, _, revision = text.partition("@")
    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=CHECKPOINT_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        what = f"'{text}' is no local folder and cannot be fetched: {reason}"
        raise RemoteFault(what, "check name and network") from error


def _family(text: str) -> str:
    config = read_json(Path(_checkpoint(text)) / "config.json")
    return discovery.backbone(str(config.get("model_type"))).model_type


def _write(root: Path, settings: Settings) -> Workspace:
    file = root / SETTINGS_FILE
    if file.exists():
        existing = Settings.from_toml(file.read_text(encoding="utf-8"), str(file))
        # the recipe may have been edited by hand; it is no part of what init decides
        if dataclasses.replace(existing, recipe=settings.recipe) != settings:
            raise Mismatch(f"{root} is a workspace with other settings", f"edit {file} or choose another folder")
        return Workspace(root, existing)
    write_bytes(file, settings.to_toml().encode())
    return Workspace(root, settings)


def _check_data(workspace: Workspace, progress: Progress) -> dict[str, int]:
    source, benchmark = workspace.source, workspace.benchmark
    counts: dict[str, int] = {}
    scored: list[Item] = []
    trained: dict[str, list[Sample]] = {}
    names = [*benchmark.parts(source), *benchmark.columns(source)]
    with progress.stage("reading the benchmark", len(names)) as advance:
        for part in benchmark.parts(source):
            trained[part] = benchmark.samples(source, part)
            counts[part] = len(trained[part])
            advance(1)
        for column in benchmark.columns(source):
            items = benchmark.items(source, column)
            counts[f"{column} items"] = len(items)
            scored += items
            advance(1)
    check_leakage(
        {part: samples for part, samples in trained.items() if part.endswith("_qa")}, scored, allow=source.allow
    )
    check_overlap(trained["forget_vqa"], trained["retain_vqa"], allow=source.allow)
    if reused := portrait_reuse([*trained["forget_vqa"], *trained["retain_vqa"]], scored):
        progress.note(f"{reused} scored items show a picture that is trained on, as the benchmark has it")
    return counts
