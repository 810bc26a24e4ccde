"""Trade-off charts of a panel: what is forgotten against what is kept, along each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmsurgery.figures.looks import Look
from mmsurgery.report.curves import Along, Chart, Point, Series, mean_point, spoken
from mmsurgery.report.fields import Fields
from mmsurgery.report.outcomes import is_collapsed
from mmsurgery.report.results import ANCHORS, FORGET, UTILITY, Results, run_label


def charts(results: Results, panel: str) -> list[Chart]:
    """One chart of all rows; where rows have groups, one per group, each with the rows of none in it."""
    levels, summary = results.levels(panel), results.summary(panel)
    anchors = {
        anchor: [_point(at.get(anchor), f"{anchor}, seed {at.get('seed').whole()}") for at in levels if at.has(anchor)]
        for anchor in ANCHORS
    }
    series: dict[str, list[Series]] = {"": []}
    for key in results.rows:
        mine = results.runs(panel, key)
        if mine and key in summary:
            made = _series(results.labels[key], results.looks[key], mine, summary[key])
            series.setdefault(results.groups[key], []).append(made)
    shared = series.pop("")
    return [
        Chart(
            title=group,
            series=[*shared, *mine],
            vanilla=anchors["vanilla"],
            gold=anchors["gold"],
            targets=[level.get("target").share() for level in levels],
        )
        for group, mine in (series or {"": []}).items()
    ]


def _series(label: str, look: Look, cells: Sequence[Fields], summary: Fields) -> Series:
    runs, budget = [], min(cell.get("steps").whole() for cell in cells)
    for cell in cells:
        which = f"{label}, {run_label(cell)}"
        runs.append(
            {
                entry.get("step").whole(): _point(entry, f"{which}, step {entry.get('step').whole()}")
                for entry in cell.get("curve").entries()
            }
        )
    hollow = is_collapsed(summary)
    if len(runs) == 1:
        return Series(label, look, _split(runs[0], budget), hollow=hollow)
    # where runs were searched for differently long, the mean ends with the shortest
    shared = sorted(set.intersection(*(set(run) for run in runs)))
    mean = {s: mean_point([run[s] for run in runs], f"{label}, step {s}, mean of {len(runs)}") for s in shared}
    fixed = summary.get("fixed").items()
    x, y = (fixed[key].get("mean").share() for key in (FORGET, UTILITY))
    end = Point(x, y, f"{label}, fixed budget, mean of {len(runs)}: {spoken(x, y)}")
    return Series(label, look, _split(mean, budget), [_split(run, budget) for run in runs], hollow, end)


def _split(run: Mapping[int, Point], budget: int) -> Along:
    """A run before and after the end of the fixed budget, step by step."""
    steps = sorted(run)
    return Along([run[s] for s in steps if s <= budget], [run[s] for s in steps if s > budget])


def _point(entry: Fields, title: str) -> Point:
    x, y = entry.get("columns").get(FORGET).share(), entry.get("utility").share()
    return Point(x, y, f"{title}: {spoken(x, y)}")
