"""The levels of a grid: one vanilla model and one set of people to forget each, in a workspace of its own.

A level lies in `experiments/levels/BACKBONE.SEED-DIGEST/`, an ordinary workspace that any verb can be pointed
at. Experiments share levels, levels share what belongs to several, and within a level rows that are the same
run share a model.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.api import Workspace
from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.artifacts.files import atomic_folder, write_bytes
from mmsurgery.artifacts.saliency_map import read_manifest
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import benchmark
from mmsurgery.data.portraits import check_drawn_for, is_whole
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UsageError
from mmsurgery.evaluate.unfinished import UNFINISHED
from mmsurgery.experiments.waiting import PatientWorkspace
from mmsurgery.hub_models import pinned_model
from mmsurgery.masks.stale import check_fresh, vanilla_files
from mmsurgery.portraits.prepare import prepare as prepare_portraits
from mmsurgery.portraits.prepare import prepare_model
from mmsurgery.provenance import sha256_json
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery.workspace import Progress

FOLDER = ("experiments", "levels")
ON_THE_SPOT = "portraits"
"""The benchmark whose models are trained where they are missing; elsewhere the vanilla model is given."""
SEED_STEP = 1000
"""Between the unlearning seeds of one level, so that no two levels share one."""


@dataclass(frozen=True)
class Level:
    """A vanilla model and whom it is to forget."""

    root: Path
    """The workspace whose experiment it is."""
    settings: Settings
    """Of the level's own workspace; its recipe's seed is the first of `unlearning`."""
    unlearning: tuple[int, ...] = (0,)
    """Seeds with which every row is run: order of samples, and draws of random masks."""
    identity: str = ""
    """Digest of what tells it from other levels where its settings hold paths of this machine; else empty."""

    @property
    def backbone(self) -> str:
        return self.settings.models.backbone

    @property
    def seed(self) -> int:
        """Of the vanilla model's training."""
        return self.settings.models.seed

    @property
    def label(self) -> str:
        benchmark = self.settings.benchmark
        drawn = f", draw {benchmark.draw}" if benchmark.draw != self.seed else ""
        return f"{self.backbone} seed {self.seed}{drawn}, forget {benchmark.forget} %"

    @property
    def vanilla(self) -> tuple[str, int]:
        """Levels of the same vanilla model share this."""
        return self.backbone, self.seed

    @property
    def folder(self) -> Path:
        made_of = [dataclasses.asdict(self.settings.benchmark), dataclasses.asdict(self.settings.models)]
        name = f"{self.backbone}.{self.seed}-{(self.identity or sha256_json(made_of))[:8]}"
        return self.root.joinpath(*FOLDER, name)


def levels_of(
    workspace: Workspace,
    *,
    seeds: Sequence[int],
    backbones: Sequence[str],
    unlearning: int = 1,
    draws: int = 1,
    by_ratio: bool = False,
    worlds: bool = False,
) -> list[Level]:
    """The levels of a grid, backbone by backbone, ratio by ratio. A given vanilla model with other weights is
    another level.

    For a benchmark that trains its models on the spot, each of `seeds` is a vanilla model of its own, with `draws`
    draws of the people to forget (draw k for seed k where there is one). Elsewhere vanilla model and forget set are
    given, there is one level, and `seeds` are those of unlearning.

    Args:
        unlearning: unlearning seeds per level.
        by_ratio: every forget ratio that the benchmark has, instead of the workspace's own.
        worlds: each vanilla model is of the world of its seed, instead of the workspace's.

    Raises:
        UsageError: if there is no choice of ratio, or of vanilla models.
        MissingArtifact: if the vanilla model is given and not there.
    """
    chosen = workspace.settings.benchmark
    ratios = _ratios(workspace) if by_ratio else (chosen.forget,)
    if chosen.name != ON_THE_SPOT:
        if unlearning > 1 or draws > 1:
            raise UsageError("the vanilla model and the people to forget are given here", "use --seeds for repetitions")
        return [_given(workspace, ratio, tuple(seeds)) for ratio in ratios]
    found = []
    for family in backbones:
        for ratio in ratios:
            for seed in seeds:
                for draw in range(seed * draws, (seed + 1) * draws):
                    settings = workspace.settings
                    models = dataclasses.replace(
                        settings.models, backbone=family, base="models/base", vanilla="models/vanilla", seed=seed
                    )
                    world = seed if worlds else chosen.world
                    asked = dataclasses.replace(chosen, data="data", draw=draw, forget=ratio, world=world)
                    runs = tuple(seed + SEED_STEP * place for place in range(unlearning))
                    recipe = dataclasses.replace(settings.recipe, seed=runs[0])
                    made = Settings(benchmark=asked, models=models, recipe=recipe)
                    found.append(Level(workspace.root, made, runs))
    return found


def _ratios(workspace: Workspace) -> tuple[int, ...]:
    """The forget ratios that the benchmark has splits for.

    Raises:
        UsageError: if it has but one forget set.
    """
    name = workspace.settings.benchmark.name
    found: tuple[int, ...] = getattr(benchmark(name), "ratios", ())
    if not found:
        raise UsageError(f"benchmark '{name}' has one forget set, no ratios to compare", "choose another experiment")
    return found


def _given(workspace: Workspace, ratio: int, seeds: tuple[int, ...]) -> Level:
    settings = workspace.settings
    base, vanilla = (_path(workspace, name, getattr(settings.models, name)) for name in ("base", "vanilla"))
    asked = dataclasses.replace(settings.benchmark, data=str(workspace.data_dir), forget=ratio)
    recipe = dataclasses.replace(settings.recipe, seed=seeds[0])
    models = dataclasses.replace(settings.models, base=base, vanilla=vanilla)
    made_of = [dataclasses.asdict(dataclasses.replace(asked, data=settings.benchmark.data))]
    identity = sha256_json([*made_of, vanilla_files(workspace).digest()])
    return Level(workspace.root, Settings(benchmark=asked, models=models, recipe=recipe), seeds, identity)


def _path(workspace: Workspace, name: str, setting: str) -> str:
    """What a level's settings say of a given model: its id on the hub, or its path from anywhere."""
    return setting if pinned_model(setting) else str(workspace.model_dir(name))


def prepare(level: Level, *, reference: bool, progress: Progress, tell: Callable[[str], None]) -> Workspace:
    """The level's workspace, its data and trained models made as far as they are missing; resumable. What is there
    is used without the lock, for what is missing another process that holds it is waited for.

    Args:
        reference: whether the model fine-tuned on the retain set is needed too.
        tell: told who is waited for.

    Raises:
        as `portraits.prepare`.
    """
    workspace = PatientWorkspace(level.folder, level.settings, tell)
    text = level.settings.to_toml().encode()
    file = level.folder / SETTINGS_FILE
    if not file.exists() or file.read_bytes() != text:  # the recipe is in no name of a level, but of its models
        write_bytes(file, text)
    others = list(_others(level))
    for other in others:
        for name in _same_models(level, other):
            if (other.model_dir(name) / "config.json").exists():
                _share_model(other, workspace, name)
    if level.settings.benchmark.name == ON_THE_SPOT:
        if not _is_drawn(workspace):
            prepare_portraits(workspace, progress=progress)
        for which in ("gold", "reference") if reference else ("gold",):
            missing = not workspace.model_dir(which).exists()
            prepare_model(workspace, which, lock=missing, progress=progress)
    for other in others:
        if other.settings.benchmark == level.settings.benchmark:
            for folder in sorted(file.parent for file in other.path("saliency").glob("[!.]*/manifest.json")):
                if _is_fresh(workspace, folder):
                    _share_missing(workspace, folder, workspace.path("saliency", folder.name))
    return workspace


def _is_drawn(workspace: Workspace) -> bool:
    """Whether data, base and vanilla are there, as the settings want them."""
    try:
        check_drawn_for(workspace.source)
        for model in ("base", "vanilla"):
            workspace.existing_model(model)
    except (InputRefused, Mismatch, MissingArtifact):
        return False
    return is_whole(workspace.data_dir)


def _same_models(level: Level, other: Workspace) -> Iterator[str]:
    """Which models of another workspace are the level's too."""
    theirs, ours = other.settings, level.settings
    if theirs.models != ours.models or theirs.benchmark.world != ours.benchmark.world:
        return
    if ours.benchmark.name == ON_THE_SPOT:
        yield from ("base", "vanilla")
    if theirs.benchmark == ours.benchmark:
        yield from ("gold", "reference")


def _is_fresh(workspace: Workspace, folder: Path) -> bool:
    """Whether a saliency map is of the level's vanilla model and data as they are."""
    try:
        check_fresh(workspace, [read_manifest(folder)])
    except (InputRefused, Mismatch):
        return False
    return True


def _share_model(other: Workspace, workspace: Workspace, name: str) -> None:
    """A model that was made again since it was shared is shared again, and its scores go."""
    source, target = other.model_dir(name), workspace.model_dir(name)
    if target.exists() and _digest(source) != _digest(target):
        with workspace.lock():
            for file in workspace.path("evals").glob(f"**/{name}.*"):
                file.unlink()
            for folder in workspace.path("evals").glob(f"**/{UNFINISHED}/{name}"):
                shutil.rmtree(folder)
            _share(source, target, replace=True)
    _share_missing(workspace, source, target)


def _digest(folder: Path) -> str:
    return CheckpointFiles(folder, backbone(model_config(folder)["model_type"]).canonical).digest()


def _share_missing(workspace: Workspace, source: Path, target: Path) -> None:
    if target.exists():
        return
    with workspace.lock():
        if not target.exists():  # shared or made meanwhile
            _share(source, target)


def _share(source: Path, target: Path, *, replace: bool = False) -> None:
    with atomic_folder(target, replace=replace) as new:
        shutil.copytree(source, new, dirs_exist_ok=True, copy_function=_link)


def _others(level: Level) -> Iterator[Workspace]:
    """The workspace around the level, then the other levels of the same seed."""
    around = Settings.read(level.root / SETTINGS_FILE)
    if level.settings.benchmark.name != ON_THE_SPOT:  # the level's settings say by whole paths what these say
        outer = Workspace(level.root, around)
        like = _given(outer, level.settings.benchmark.forget, level.unlearning).settings
        if like.benchmark.forget == around.benchmark.forget:
            yield Workspace(level.root, like)
        return
    yield Workspace(level.root, around)
    for file in sorted(level.folder.parent.glob(f"{level.backbone}.{level.seed}-*/{SETTINGS_FILE}")):
        if file.parent != level.folder:
            yield Workspace(file.parent, Settings.read(file))


def _link(source: str, target: str) -> None:
    """The same file under another name where the file system can: artifacts are replaced whole, never rewritten."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
