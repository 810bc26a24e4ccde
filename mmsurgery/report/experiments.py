"""Experiments for the page: a panel per table, each with its findings, verdicts and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmsurgery.artifacts.files import read_json
from mmsurgery.provenance import check_seal
from mmsurgery.report import audits, cases, claims, deviations, outcomes, ratios, runs, sweeps, tables, tradeoffs, tuned
from mmsurgery.report.curves import Chart
from mmsurgery.report.fields import Fields
from mmsurgery.report.origin import Origin, origin
from mmsurgery.report.pictures import Pictures
from mmsurgery.report.results import FORGET, PanelKey, Results
from mmsurgery.report.texts import NAME, SENTENCE, cut

_OPEN = 2
"""Panels of an experiment that stand open; where there are more, all are folded."""


@dataclass(frozen=True)
class Panel:
    """One table with all that belongs to it."""

    label: str
    made_of: str
    """`3 vanilla models`, with draws and unlearning seeds where there are several."""
    several: bool
    """Whether there are several levels."""
    groups: Sequence[tables.Group]
    quantities: Sequence[tuple[str, str]]
    findings: Sequence[str]
    claims: Sequence[claims.Claim]
    charts: Sequence[Chart]
    pairs: Sequence[tables.Pair]
    runs: Sequence[runs.Run]
    outcomes: outcomes.Outcomes | None
    sweeps: Sequence[sweeps.Sweep]
    deviations: deviations.Deviations | None
    cases: cases.Cases | None
    audit: audits.Grid | None
    tuned: tuned.Tuned | None
    made: frozenset[tuple[object, ...]]
    """Which runs they are, and what these scored."""
    same: Same | None = None
    """Where else its tables stand."""


@dataclass(frozen=True)
class Same:
    """An earlier panel of the same runs that shows all that they scored."""

    experiment: str
    """Its title."""
    panel: str
    anchor: str


@dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    question: str
    compared: str
    """The row that every other is compared with."""
    fallen: str
    """What a run is called that no longer answers what it should have kept."""
    panels: Sequence[Panel]
    folded: bool
    """Whether its panels are folded, for there are many."""
    ratios: Sequence[ratios.Ratios]
    origin: Origin


def read_experiment(path: Path, pictures: Pictures | None = None) -> Experiment:
    """`experiments/NAME/results.json` as the page shows it.

    Args:
        pictures: where pictures of people are found; None to leave them out.

    Raises:
        InputRefused: if it is damaged, or lacks something or holds something else than it should.
        Mismatch: if it was written by another schema.
    """
    found = Fields(check_seal(read_json(path), str(path), kind="experiment"), str(path))
    name = cut(found.get("name").text(), NAME)
    results = Results(found)
    made = origin("experiment", name, found)
    if made.command == "experiment":
        plain = name.removesuffix("-tuned")
        made = replace(made, command=f"experiment {plain}{' --tune' if plain != name else ''}")
    return Experiment(
        name=name,
        title=cut(found.get("title").text(), NAME),
        question=cut(found.get("question").text(), SENTENCE),
        compared=results.labels[results.compared],
        fallen=results.fallen,
        panels=[_panel(results, panel, pictures) for panel in results.panels],
        folded=len(results.panels) > _OPEN,
        ratios=ratios.ratios(results),
        origin=made,
    )


def _panel(results: Results, panel: PanelKey, pictures: Pictures | None) -> Panel:
    key, levels = panel.key, results.levels(panel.key)
    return Panel(
        label=panel.label,
        made_of=_made_of(levels),
        several=len(levels) > 1,
        groups=tables.groups(results, key),
        quantities=tables.quantities(results),
        findings=[cut(said, SENTENCE) for said in results.found.get("findings").get(key).texts()],
        claims=claims.claims(results, key),
        charts=tradeoffs.charts(results, key),
        pairs=tables.pairs(results, key),
        runs=runs.every_run(results, key),
        outcomes=outcomes.outcomes(results, key),
        sweeps=sweeps.sweeps(results, key),
        deviations=deviations.deviations(results, key),
        cases=cases.cases(results, key, pictures),
        audit=audits.grid(results, key),
        tuned=tuned.tuned(results, key),
        made=_made(results, key),
    )


def without_repeats(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Panels whose runs an earlier experiment shows too point there, and say only what that one does not."""
    shown: list[tuple[Panel, Same]] = []
    found = []
    for outer, experiment in enumerate(experiments, 1):
        panels = []
        for place, panel in enumerate(experiment.panels, 1):
            first = next(((other, same) for other, same in shown if _covers(other, panel)), None)
            if first is not None:
                other, same = first
                findings = [said for said in panel.findings if said not in other.findings]
                claimed = [each for each in panel.claims if each not in other.claims]
                panels.append(replace(panel, findings=findings, claims=claimed, same=same))
            else:
                shown.append((panel, Same(experiment.title, panel.label, anchor(outer, place))))
                panels.append(panel)
        found.append(replace(experiment, panels=panels))
    return found


def anchor(experiment: int, panel: int) -> str:
    """The place of a panel on the page, both counted from 1."""
    return f"part-{experiment}-{panel}"


def _covers(panel: Panel, other: Panel) -> bool:
    """Whether all tables and charts of the other one stand in this one."""
    answered = {key for key, _ in other.outcomes.columns} if other.outcomes else set()
    shown = {key for key, _ in panel.outcomes.columns} if panel.outcomes else set()
    columns = {key for key, _ in other.quantities} <= {key for key, _ in panel.quantities}
    return bool(other.made) and panel.made == other.made and answered <= shown and columns


def _made(results: Results, panel: str) -> frozenset[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for cell in results.cells(panel):
        where = (results.row(cell.get("row")), *(cell.get(key).whole() for key in ("seed", "draw", "unlearning")))
        if cell.has("failed"):
            found.append((*where, cell.get("failed").text()))
            continue
        fixed = cell.get("fixed")
        scored = (fixed.get("columns").get(FORGET).share(), fixed.get("utility").share())
        found.append((*where, cell.get("run_key").text(), *scored))
    return frozenset(found)


def _made_of(levels: Sequence[Fields]) -> str:
    """What a panel's runs start from."""
    seeds = len({level.get("seed").whole() for level in levels})
    orders = max((len(level.get("unlearning").entries()) for level in levels), default=0)
    said = f"{seeds} vanilla {'model' if seeds == 1 else 'models'}"
    said += f", {len(levels)} draws" if len(levels) > seeds else ""
    return said + (f", {orders} unlearning seeds" if orders > 1 else "")
