"""`inspect --html`: one artifact as one small offline page without scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmsurgery.artifacts.files import write_bytes
from mmsurgery.figures.heatmap import Heatmap, faintest, scale, shade, short
from mmsurgery.figures.looks import HEAT
from mmsurgery.names import model_order
from mmsurgery.report import palette
from mmsurgery.report.write import environment, page_text, policy

_STEPS = len(HEAT) - 1
"""Of the colours of a cell, classes `h0` and on of the style."""


def write_inspection(path: Path, name: str, description: Mapping[str, Any], heatmaps: Sequence[Heatmap]) -> None:
    """Write the description of an artifact: facts, origin, tables, heatmaps; the same bytes each time.

    Raises:
        MachineFault: if it cannot be written.
    """
    style = page_text("inspection.css") + palette.heat()
    tables = [_table(title, description[key]) for title, key in _TABLES.items() if description.get(key)]
    tables += [_overlap_table("overlap with other masks", description["overlaps"])] if "overlaps" in description else []
    record = description if description["kind"] == "stability" else description.get("stability")
    tables += [_overlap_table("stability", record["comparisons"])] if record else []
    page = (
        environment()
        .get_template("inspection.html")
        .render(
            name=name,
            kind=description["kind"],
            facts=[(key, value) for key, value in _facts(description)],
            origin=description.get("origin") or [],
            tables=tables,
            maps=_maps(heatmaps),
            style=Markup(style),  # noqa: S704
            policy=policy(style),
        )
    )
    write_bytes(path, page.encode())


_TABLES = {
    "by group": "by_group",
    "saliency by group": "groups",
    "by layer": "by_layer",
    "by component": "by_component",
}


def _facts(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in description.items():
        if key == "counts" and isinstance(value, Mapping):
            flat += [(f"counts: {inner}", _said(count)) for inner, count in value.items() if inner not in description]
        elif not isinstance(value, (dict, list)) and value is not None and key != "kind":
            flat.append((key, _said(value)))
    run = description.get("run")
    for key, value in run.items() if isinstance(run, Mapping) else ():
        if isinstance(value, (str, int, float)) and key not in ("schema", "kind", "model_sha256", "model_type"):
            flat.append((f"made: {key}", _said(value)))
    return flat


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    flat = {key: _flat(entry) for key, entry in rows.items()}
    columns = list(dict.fromkeys(column for entry in flat.values() for column in entry))
    body = [[key, *(_said(entry[c]) if c in entry else "-" for c in columns)] for key, entry in flat.items()]
    return {"title": title, "columns": ["", *columns], "rows": body}


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    quantiles = entry.get("quantiles", {})
    return {**{k: v for k, v in entry.items() if k != "quantiles"}, **{f"q{k}": v for k, v in quantiles.items()}}


def _overlap_table(title: str, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows: dict[str, Mapping[str, Any]] = {}
    for pair in pairs:
        name = pair.get("with") or f"{pair['first']} | {pair['second']}"
        for group, entry in [("all", pair), *sorted(pair["by_group"].items(), key=lambda entry: model_order(entry[0]))]:
            rows[f"{name}, {group}"] = {key: entry[key] for key in ("both", "either", "iou", "iou_by_chance")}
    return _table(title, rows)


def _maps(heatmaps: Sequence[Heatmap]) -> list[dict[str, Any]]:
    faint, bright = faintest(heatmaps), scale(heatmaps)

    def cell(value: float) -> tuple[str, str]:
        if math.isnan(value):
            return "", "none"
        return short(value), f"h{min(_STEPS, round(_STEPS * shade(value, faint, bright)))}"

    return [
        {
            "title": f"{each.title}: {each.unit}, layers by components",
            "columns": each.columns,
            "rows": [
                (row, [cell(value) for value in values])
                for row, values in zip(each.rows, each.values.tolist(), strict=True)
            ],
        }
        for each in heatmaps
    ]
