"""All figures of an experiment's results, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmsurgery.artifacts.files import write_bytes
from mmsurgery.figures.canvas import FORGET, Results
from mmsurgery.figures.curves import tradeoff
from mmsurgery.figures.heatmap import FORMATS
from mmsurgery.figures.outcomes import has_outcomes, outcomes
from mmsurgery.figures.ratios import has_ratios, ratios
from mmsurgery.figures.sweeps import sweeps, sweeps_of
from mmsurgery.names import check_artifact_name

__all__ = ["draw_figures", "outcomes", "ratios", "sweeps", "tradeoff"]

Draw = Callable[[Results, str, str], bytes]


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """Write the figures that the results have, each as SVG and PNG, with the same bytes each time.

    `tradeoff-PANEL`, `outcomes-PANEL`, `sweeps-PANEL` and, where a backbone has several forget ratios,
    `ratios-BACKBONE`.

    Raises:
        UsageError: if a panel's key cannot name a file.
        MachineFault: if a file cannot be written.
    """
    wanted: list[tuple[str, Draw, str]] = []
    for panel in [each["key"] for each in results["panels"]]:
        if FORGET in results["columns"]:
            wanted.append(("tradeoff", tradeoff, panel))
            if sweeps_of(results, panel):
                wanted.append(("sweeps", sweeps, panel))
        if has_outcomes(results, panel):
            wanted.append(("outcomes", outcomes, panel))
    for backbone in dict.fromkeys(each["backbone"] for each in results["panels"]):
        if FORGET in results["columns"] and has_ratios(results, backbone):
            wanted.append(("ratios", ratios, backbone))
    paths = []
    for kind, draw, what in wanted:
        for format in FORMATS:
            path = folder / f"{check_artifact_name(f'{kind}-{what}')}.{format}"
            write_bytes(path, draw(results, what, format))
            paths.append(path)
    return paths
