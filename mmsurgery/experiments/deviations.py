"""Figures 5 and 6: where a model differs most from vanilla, and the mean of that over models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mmsurgery.diff.difference import group_counts
from mmsurgery.diff.run import diff
from mmsurgery.errors import Mismatch, UsageError
from mmsurgery.workspace import SILENT, Progress, Workspace

Deviation = Mapping[str, Any]
"""An entry of a results file's `deviations`."""

_AXES = ("layers", "components", "sizes")


def deviation(workspace: Workspace, model: str, *, n: int, progress: Progress = SILENT) -> dict[str, Any]:
    """Where a model differs from vanilla, from `diffs/vanilla..MODEL.json`, which is made where it is missing.

    Args:
        n: how many of the weights that moved furthest to look at; the paper takes as many as Eq. 7's mask selects.

    Returns:
        n; `changed`, the share of all weights whose bits differ; `groups`: by module group `top`, its part of the
        top n, and `changed`, the share of its weights that changed; `layers`, `components`, `sizes` and `relative` of
        the diff; `share`: of each cell's weights those among the top n, 0 where there is no cell; `models`: 1.

    Raises:
        as `diff.run.diff`; among them Mismatch, if the file there is about another n.
    """
    record = diff(workspace, "vanilla", model, top=n, progress=progress).record
    counts, weights = group_counts(record), _weights(record)
    most = sum(counts.values()) or 1  # fewer than n where fewer weights changed
    return {
        "n": n,
        "changed": record["changed"] / sum(weights.values()),
        "groups": {
            group: {"top": counts[group] / most, "changed": record["changed_by_group"][group] / weights[group]}
            for group in counts
        },
        **{axis: record[axis] for axis in _AXES},
        "share": [
            [value / size if size else 0.0 for value, size in zip(*rows, strict=True)]
            for rows in zip(record["heatmap"], record["sizes"], strict=True)
        ],
        "relative": record["relative"],
        "models": 1,
    }


def mean_deviation(found: Sequence[Deviation]) -> dict[str, Any]:
    """The mean over models; a cell's relative change is None where it is None for one of them.

    Args:
        found: of one model each, see `deviation`; their order makes no difference.

    Raises:
        UsageError: if there is none.
        Mismatch: if their layers, components or sizes differ.
    """
    if not found:
        raise UsageError("there is no model to take the mean of", "run the experiment first")
    first = found[0]
    for other in found:
        for axis in _AXES:
            if other[axis] != first[axis]:
                raise Mismatch(f"models of different {axis} have no mean", "take models of one architecture")
    return {
        "n": round(fmean(each["n"] for each in found)),
        "changed": fmean(each["changed"] for each in found),
        "groups": {
            group: {what: fmean(each["groups"][group][what] for each in found) for what in values}
            for group, values in first["groups"].items()
        },
        **{axis: first[axis] for axis in _AXES},
        "share": _mean([each["share"] for each in found]),
        "relative": _mean([each["relative"] for each in found]),
        "models": len(found),
    }


def _weights(record: Mapping[str, Any]) -> dict[str, int]:
    """Weights of each module group."""
    weights: dict[str, int] = {}
    for layer, sizes in zip(record["layers"], record["sizes"], strict=True):
        group = layer.partition(".")[0]
        weights[group] = weights.get(group, 0) + sum(sizes)
    return weights


def _mean(tables: Sequence[Sequence[Sequence[float | None]]]) -> list[list[float | None]]:
    """Cell by cell."""
    return [
        [
            None if None in cell else fmean(value for value in cell if value is not None)
            for cell in zip(*rows, strict=True)
        ]
        for rows in zip(*tables, strict=True)
    ]
