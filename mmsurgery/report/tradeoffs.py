"""Trade-off charts of a panel: what is forgotten against what is kept, along each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmsurgery.report.curves import Chart, Point, Series, mean_point, spoken
from mmsurgery.report.fields import Fields
from mmsurgery.report.outcomes import is_collapsed
from mmsurgery.report.results import ANCHORS, FORGET, Results, run_label


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
            made = _series(results.labels[key], mine, is_collapsed(summary[key]))
            series.setdefault(results.groups[key], []).append(made)
    shared = series.pop("")
    return [
        Chart(
            title=group,
            series=[replace(each, style=style) for style, each in enumerate([*shared, *mine])],
            vanilla=anchors["vanilla"],
            gold=anchors["gold"],
            targets=[level.get("target").share() for level in levels],
        )
        for group, mine in (series or {"": []}).items()
    ]


def _series(label: str, cells: Sequence[Fields], hollow: bool) -> Series:
    runs = []
    for cell in cells:
        which = f"{label}, {run_label(cell)}"
        runs.append(
            {
                entry.get("step").whole(): _point(entry, f"{which}, step {entry.get('step').whole()}")
                for entry in cell.get("curve").entries()
            }
        )
    if len(runs) == 1:
        return Series(label, 0, list(runs[0].values()), hollow=hollow)
    # where runs were searched for differently long, the mean ends with the shortest
    shared = sorted(set.intersection(*(set(run) for run in runs)))
    mean = [mean_point([run[step] for run in runs], f"{label}, step {step}, mean of {len(runs)}") for step in shared]
    return Series(label, 0, mean, [list(run.values()) for run in runs], hollow)


def _point(entry: Fields, title: str) -> Point:
    x, y = entry.get("columns").get(FORGET).share(), entry.get("utility").share()
    return Point(x, y, f"{title}: {spoken(x, y)}")
