"""`experiment`: run a grid, and write what it shows.

Every model, mask and score is an artifact of its level's workspace, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.artifacts.files import atomic_files, read_json
from mmsurgery.backbones import discovery
from mmsurgery.data.anchors import ANCHORS, parts_with_anchors
from mmsurgery.errors import MissingArtifact, UsageError
from mmsurgery.experiments import catalogue, grid, tuning
from mmsurgery.experiments.cells import scored_items
from mmsurgery.experiments.levels import ON_THE_SPOT, Level, levels_of
from mmsurgery.experiments.metrics import METRICS, Metrics
from mmsurgery.experiments.pace import Estimated, Pace
from mmsurgery.experiments.results import assemble
from mmsurgery.experiments.rows import Experiment
from mmsurgery.experiments.tables import tables
from mmsurgery.experiments.texts import (
    curves_csv,
    deviations_csv,
    numbers_csv,
    paired_csv,
    to_csv,
    to_latex,
    to_markdown,
)
from mmsurgery.experiments.waiting import PatientWorkspace
from mmsurgery.figures.deviations import draw_deviations
from mmsurgery.figures.heatmap import FORMATS
from mmsurgery.figures.tradeoff import draw_figures
from mmsurgery.provenance import canonical_json, check_seal
from mmsurgery.saliency.shards import Shard
from mmsurgery.workspace import SILENT, Progress

RESULTS = "results.json"


@dataclass(frozen=True)
class ExperimentResult:
    """A finished experiment, or a finished share of one."""

    name: str
    path: Path
    """Its results file; tables and figures lie beside it."""
    up_to_date: bool
    results: dict[str, Any] | None = field(repr=False)
    """None where only a share of the levels was worked on."""
    seconds: float
    """Wall time of this call."""


@dataclass(frozen=True)
class _Grid:
    """Which levels a call is about, and how it works on them."""

    workspace: Workspace
    backbones: tuple[str, ...]
    seeds: Sequence[int]
    unlearning: int
    draws: int
    jobs: int
    shard: Shard | None

    def levels(self, table: Experiment, seeds: Sequence[int] | None = None) -> list[Level]:
        return levels_of(
            self.workspace,
            seeds=[table.first + seed for seed in self.seeds] if seeds is None else seeds,
            worlds=table.worlds,
            backbones=self.backbones,
            unlearning=self.unlearning,
            draws=self.draws,
            by_ratio=table.by_ratio,
        )

    def run(
        self,
        levels: Sequence[Level],
        tables: Mapping[str, Experiment],
        metrics: Metrics,
        progress: Progress,
        sides: Sequence[frozenset[str]] = (),
    ) -> list[dict[str, Any]]:
        pieces = grid.works(levels, tables, sides)
        if self.shard is not None:
            if self.shard.count > len(pieces):
                vanillas = _count(len(pieces), "vanilla model")
                shares = "leave --shard out" if len(pieces) == 1 else f"use --shard I/{len(pieces)} or fewer shares"
                raise UsageError(f"{vanillas} cannot be split into {self.shard.count} shares", shares)
            pieces = pieces[self.shard.index - 1 :: self.shard.count]
        first = next(iter(tables.values()))
        jobs = min(self.jobs, len(pieces))
        progress.note(
            f"{first.title}: {_count(len(levels), 'level')} of {_count(len(first.rows), 'row')}, {jobs} at a time"
        )
        pace = Pace([piece.steps for piece in pieces], jobs, metrics.earlier())

        def log(event: Mapping[str, Any]) -> None:
            metrics.log(**event)
            if pace.tell(event) and isinstance(progress, Estimated):
                progress.left(pace.left())

        with progress.stage(f"{first.name}, rows", sum(piece.units for piece in pieces)) as advance:
            if isinstance(progress, Estimated):
                progress.left(pace.left())
            return grid.run(pieces, self.jobs, progress=progress, advance=advance, log=log)


def experiment(
    workspace: Workspace,
    name: str,
    *,
    seeds: int = 3,
    backbones: tuple[str, ...] = (),
    unlearning_seeds: int = 1,
    draws: int = 1,
    tune: bool = False,
    jobs: int | None = None,
    shard: str | None = None,
    trackers: Sequence[str] = (),
    progress: Progress = SILENT,
) -> ExperimentResult:
    """Run an experiment of `catalogue.EXPERIMENTS` and write `experiments/NAME/`: `results.json`, its tables as
    `table.md`, `table.tex`, `table.csv`, every number as `numbers.csv`, every point along the runs as `curves.csv`,
    every difference as `paired.csv`, where weights moved as `deviations.csv`, figures as SVG and PNG, and
    `metrics.jsonl`.

    Args:
        seeds: vanilla models per backbone; unlearning seeds where vanilla is given (see `levels.levels_of`).
        backbones: families of the micro model, for portraits; where empty the workspace's own, or every family for an
            experiment that is about all of them.
        unlearning_seeds: runs of every row on each level.
        draws: draws of the people to forget, for each vanilla model.
        tune: choose each row's learning rate first (see `tuning`), and write `experiments/NAME-tuned/`.
        jobs: vanilla models worked on at a time; by default as many as there are GPUs, or processors for their threads.
        shard: `I/N`: work on the I-th of N shares of the vanilla models, and write no results.
        trackers: names of experiment trackers, as accelerate knows them.

    Raises:
        UsageError: for an unknown experiment, backbone or tracker, or a number that makes no sense.
        MissingArtifact: if the vanilla model is given and not there.
        MachineFault: if a level's workspace is in use or cannot be written.
    """
    begin = time.monotonic()
    table = _offered(workspace, catalogue.find(name), progress)
    part = None if shard is None else Shard.parse(shard)
    _check(workspace, seeds=seeds, jobs=jobs, unlearning_seeds=unlearning_seeds, draws=draws, tune=tune)
    if tune and part is not None:
        raise UsageError("learning rates are tuned in one run", "leave --shard out")
    chosen = _backbones(workspace, table, backbones)
    jobs = jobs or grid.jobs_by_default(workspace.threads)
    benchmark = workspace.settings.benchmark
    if benchmark.name == ON_THE_SPOT and benchmark.draw:
        progress.note(f"benchmark.draw = {benchmark.draw} is not used: each vanilla model has draws of its own")
    asked = _Grid(workspace, chosen, range(seeds), unlearning_seeds, draws, jobs, part)
    levels = asked.levels(table)
    name = f"{name}-tuned" if tune else name
    path = workspace.path("experiments", name, RESULTS)
    settings = {"experiment": name, "seeds": seeds, "backbones": list(chosen), "levels": len(levels)}
    metrics = Metrics(path.with_name(METRICS), trackers, name, settings, progress.note)
    metrics.begin(_command(table.name, seeds, backbones, unlearning_seeds, draws, tune))
    try:
        results = _results(asked, table, levels, tune, metrics, progress)
    finally:
        metrics.close()
    if results is None:
        return ExperimentResult(name, path, False, None, time.monotonic() - begin)
    up_to_date = _write(PatientWorkspace(workspace.root, workspace.settings, progress.note), path, results, settings)
    return ExperimentResult(name, path, up_to_date, results, time.monotonic() - begin)


def _command(name: str, seeds: int, backbones: Sequence[str], unlearning_seeds: int, draws: int, tune: bool) -> str:
    """What runs an experiment again; options as `experiment` has them by default are left out."""
    options = [f"--seeds {seeds}"] if seeds != 3 else []
    options += [f"--backbones {','.join(backbones)}"] if backbones else []
    options += [f"--unlearning-seeds {unlearning_seeds}"] if unlearning_seeds != 1 else []
    options += [f"--draws {draws}"] if draws != 1 else []
    return " ".join(["mmsurgery experiment", name, *options, *(["--tune"] if tune else [])])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _results(
    asked: _Grid, table: Experiment, levels: Sequence[Level], tune: bool, metrics: Metrics, progress: Progress
) -> dict[str, Any] | None:
    """The results of the grid, None for a share of it."""
    given = asked.workspace.settings.benchmark.name != ON_THE_SPOT
    rate = asked.workspace.settings.recipe.learning_rate
    tables: Mapping[str, Experiment] = dict.fromkeys(asked.backbones, table)
    choice, people = None, None
    sides: tuple[frozenset[str], ...] = ()
    if tune:
        tried = tuning.candidates(table, rate)
        where = asked.levels(tried, None if given else tuning.SEEDS)
        if given:
            items = {column: [item.person for item in each] for column, each in scored_items(asked.workspace).items()}
            people = tuning.validation_people(items)
            sides = (people, frozenset(person for each in items.values() for person in each) - people)
        made = asked.run(where, dict.fromkeys(asked.backbones, tried), metrics, progress, sides)
        choice = tuning.choose(table, made, rate, people=people)
        tables = {backbone: tuning.tuned(table, choice[backbone]) for backbone in asked.backbones}
        table = dataclasses.replace(table, title=tuning.tuned(table, next(iter(choice.values()))).title)
    made = asked.run(levels, tables, metrics, progress, sides)
    if asked.shard is not None:
        return None
    return assemble(table, made, tuned=choice, judged=None if people is None else lambda person: person not in people)


def _write(workspace: Workspace, path: Path, results: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Write everything that is not there as it should be; whether all of it was."""
    texts, title, name = tables(results), str(results["title"]), path.parent.name
    files = {
        path.with_name("table.md"): to_markdown(texts, title).encode(),
        path.with_name("table.tex"): to_latex(texts, title, name).encode(),
        path.with_name("table.csv"): to_csv(texts).encode(),
        path.with_name("numbers.csv"): numbers_csv(results).encode(),
        path.with_name("curves.csv"): curves_csv(results).encode(),
        path.with_name("paired.csv"): paired_csv(results).encode(),
    }
    if "deviations" in results:
        files[path.with_name("deviations.csv")] = deviations_csv(results).encode()
    files[path] = canonical_json(results) + b"\n"  # last: it says that the others are there
    if all(file.is_file() and file.read_bytes() == content for file, content in files.items()):
        return True
    with workspace.lock():
        if "deviations" not in results and "cases" not in results:
            draw_figures(results, path.parent)
        _draw_deviations(results, path.parent)
        with atomic_files(*files) as temporaries:
            for temporary, content in zip(temporaries, files.values(), strict=True):
                temporary.write_bytes(content)
        workspace.journal("experiment", **{**settings, "name": settings["experiment"]})
    return False


def _draw_deviations(results: Mapping[str, Any], folder: Path) -> None:
    """`deviations-PANEL` and `relative-PANEL`, where the results have them."""
    labels = {row["key"]: str(row["label"]) for row in results["rows"]}
    panels = {panel["key"]: panel["label"] for panel in results["panels"]}
    for panel, found in results.get("deviations", {}).items():
        entries = {labels[row]: entry for row, entry in found.items()}
        for kind, name in (("share", "deviations"), ("relative", "relative")):
            for ending in FORMATS:
                title = f"{results['title']}, {panels[panel]}"
                draw_deviations(entries, kind, folder / f"{name}-{panel}.{ending}", title)


def _check(
    workspace: Workspace,
    *,
    seeds: int,
    jobs: int | None,
    unlearning_seeds: int,
    draws: int,
    tune: bool,
) -> None:
    if min(seeds, unlearning_seeds, draws) < 1 or (jobs is not None and jobs < 1):
        raise UsageError("--seeds, --unlearning-seeds, --draws and --jobs are at least 1", "change the number")
    if tune and workspace.settings.benchmark.name == ON_THE_SPOT and seeds > min(tuning.SEEDS):
        raise UsageError(f"{seeds} seeds meet those that rates are tuned on", "use fewer --seeds")


def _offered(workspace: Workspace, table: Experiment, progress: Progress) -> Experiment:
    """The experiment without rows whose masks are measured on a part that the benchmark lacks."""
    offered = parts_with_anchors(workspace.benchmark, workspace.source)
    if workspace.benchmark.name == ON_THE_SPOT:
        offered = (*offered, ANCHORS)  # its levels draw them
    missing = {
        row.key: part
        for row in table.rows
        for part in str((row.mask or {}).get("preserve", "")).split(",")
        if part and part not in offered
    }
    for key, part in missing.items():
        progress.note(f"{table.row(key).label}: left out, the benchmark has no part {part}")
    return dataclasses.replace(table, rows=tuple(row for row in table.rows if row.key not in missing))


def _backbones(workspace: Workspace, table: Experiment, asked: tuple[str, ...]) -> tuple[str, ...]:
    on_the_spot = workspace.settings.benchmark.name == ON_THE_SPOT
    if asked and not on_the_spot:
        raise UsageError("only portraits makes models of a chosen backbone", "leave --backbones out")
    if not asked and table.every_backbone and on_the_spot:
        asked = tuple(sorted(plugin.name for plugin in discovery.installed()))
    families = asked or (workspace.settings.models.backbone,)
    return tuple(dict.fromkeys(discovery.backbone(family).model_type for family in families))


def read_results(path: Path) -> dict[str, Any]:
    """The results of an experiment.

    Raises:
        MissingArtifact: if it was not run.
        InputRefused: if the file is damaged.
    """
    if not path.exists():
        raise MissingArtifact(f"{path} does not exist", f"mmsurgery experiment {path.parent.name}")
    return check_seal(read_json(path), str(path), kind="experiment")
