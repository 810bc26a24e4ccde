"""Results of experiments with invented numbers: a table, forget ratios, ablations."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {
    "forget_vqa": "Forget VQA",
    "forget_qa": "Forget QA",
    "retain_vqa": "Retain VQA",
    "retain_qa": "Retain QA",
    "realworld_vqa": "Real-world VQA",
    "realworld_qa": "Real-world QA",
}
UTILITY = list(COLUMNS)[1:]
N = {"forget_vqa": 126, "forget_qa": 84, "retain_vqa": 378, "retain_qa": 378, "realworld_vqa": 140, "realworld_qa": 140}
RATIO = {"beta": 1.0, "modules": "lm,connector"}
OUTCOMES = ("correct", "other_person", "wrong", "refusal", "gibberish")

TABLE: tuple[tuple[str, str, Any, float, float], ...] = (
    # key, label, mask, how fast it forgets, what it costs
    ("ga", "GA", None, 3.4, 0.42),
    ("ga_diff", "GA_Diff", None, 2.2, 0.16),
    ("kl_min", "KL_Min", None, 1.4, 0.14),
    ("npo", "NPO", None, 1.0, 0.22),
    ("mmunlearner", "MMUnlearner", RATIO, 1.9, 0.13),
)


def row(key: str, label: str, mask: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "label": label,
        "group": None,
        "method": "mmunlearner",
        "mask": None if mask is None else dict(mask),
        "scope": "forget",
        "protocol": "equations",
        "reference": None,
        "forget_weight": 1.0,
        "retain_batch": None,
        "learning_rate": None,
        **more,
    }


def table(
    panels: Sequence[tuple[str, int]] = (("llava", 10),), seeds: int = 3, collapsed: Sequence[str] = ()
) -> dict[str, Any]:
    """The five methods; a panel per backbone and forget ratio."""
    speeds = {key: (speed, cost) for key, _, _, speed, cost in TABLE}
    rows = [row(key, label, mask) for key, label, mask, _, _ in TABLE]
    return assemble(rows, speeds, panels, seeds, collapsed=collapsed)


def ablations(seeds: int = 3) -> dict[str, Any]:
    """Groups: three sweeps with the compared row's value between theirs, a retain batch, and one of words."""
    rows, speeds = [row("mmunlearner", "MMUnlearner", RATIO)], {"mmunlearner": (1.9, 0.13)}

    def add(group: str, key: str, label: str, speed: float, cost: float, **settings: Any) -> None:
        rows.append(row(key, label, **{"mask": RATIO, "group": group, **settings}))
        speeds[key] = (speed, cost)

    for beta in (0.1, 0.5, 2.0, 10.0):
        add(
            "beta", f"beta-{beta:g}", f"beta {beta:g}", 2.2 - 0.5 * math.log10(beta), 0.14, mask={**RATIO, "beta": beta}
        )
    for density in (0.01, 0.05, 0.3, 1.0):
        speed, cost = 1.0 + 2 * density**0.3, 0.1 + 0.2 * density
        mask = {"density": density, "modules": "lm,connector"}
        add("density", f"density-{density:g}", f"{100 * density:g} % of weights", speed, cost, mask=mask)
    for estimator in ("batch", "dataset"):
        add("estimator", estimator, f"{estimator} gradients", 1.8, 0.15, mask={**RATIO, "estimator": estimator})
    for weight in (0.2, 0.4, 0.7):
        add("forget weight", f"weight-{weight:g}", f"forget loss x {weight:g}", 0.4 + weight, 0.1, forget_weight=weight)
    for batch in (8, 16):
        add("retain batch", f"retain-{batch}", f"{batch} retain samples", 1.8, 0.13 - batch / 400, retain_batch=batch)
    return assemble(rows, speeds, (("llava", 10),), seeds)


def assemble(
    rows: Sequence[dict[str, Any]],
    speeds: Mapping[str, tuple[float, float]],
    panels: Sequence[tuple[str, int]],
    seeds: int,
    collapsed: Sequence[str] = (),
) -> dict[str, Any]:
    noise = random.Random("figures")
    several = len({forget for _, forget in panels}) > 1
    found: list[dict[str, Any]] = []
    levels: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for backbone, forget in panels:
        panel = f"{backbone}.{forget}" if several else backbone
        label = f"{backbone}, forget {forget} %" if several else backbone
        found.append({"key": panel, "label": label, "backbone": backbone, "forget": forget})
        mine: list[dict[str, Any]] = []
        ends: dict[str, list[dict[str, Any]]] = {"vanilla": [], "gold": []}
        for seed in range(seeds):
            ends["vanilla"].append(_columns(0.82 + noise.uniform(-0.02, 0.02), 0.87, noise))
            ends["gold"].append(_columns(0.31 + 0.03 * seed, 0.9, noise))
            target = ends["gold"][-1]["columns"]["forget_vqa"] + 0.05
            where = {"panel": panel, "backbone": backbone, "seed": seed, "draw": 0, "forget": forget}
            start = {name: {"model_sha256": "0" * 64, "remarks": {}, **of[-1]} for name, of in ends.items()}
            levels.append({**where, "unlearning": [0], "target": target, **start, "n": N})
            for each in rows:
                curve = _curve(*speeds[each["key"]], forget, noise)
                mine.append(_cell(where, each, curve, target, each["key"] in collapsed))
        summary[panel] = {
            **{name: _summary(of, None, noise) for name, of in ends.items()},
            **{
                each["key"]: _summary(
                    [cell["fixed"] for cell in mine if cell["row"] == each["key"]],
                    [cell for cell in mine if cell["row"] == each["key"]],
                    noise,
                )
                for each in rows
            },
        }
        cells += mine
    return {
        "title": "Table 1: the five methods",
        "rows": list(rows),
        "columns": {key: {"label": label, "chance": 0.25} for key, label in COLUMNS.items()},
        "utility": UTILITY,
        "compared": "mmunlearner",
        "panels": found,
        "levels": levels,
        "cells": cells,
        "summary": summary,
    }


def _columns(forget: float, kept: float, noise: random.Random) -> dict[str, Any]:
    columns = {"forget_vqa": forget} | {c: min(1.0, max(0.0, kept + noise.uniform(-0.04, 0.04))) for c in UTILITY}
    return {"columns": columns, "utility": sum(columns[c] for c in UTILITY) / len(UTILITY)}


def _curve(speed: float, cost: float, forget: int, noise: random.Random) -> list[dict[str, Any]]:
    points = []
    for step in range(0, 65, 8):
        left = math.exp(-speed * step / 40)
        kept = 0.87 - cost * (0.6 + forget / 25) * ((1 - left) ** 1.6 + step / 200)
        left = left * (1 - forget / 200) + (noise.uniform(-0.03, 0.03) if step else 0.0)
        points.append({"step": step, **_columns(0.12 + 0.7 * left, kept, noise)})
    return points


def _cell(
    where: Mapping[str, Any], each: Mapping[str, Any], curve: list[dict[str, Any]], target: float, collapsed: bool
) -> dict[str, Any]:
    at = next((point for point in curve if point["columns"]["forget_vqa"] <= target), None)
    density = None
    if each["mask"]:
        density = each["mask"].get("density", 0.15)
    return {
        **{key: value for key, value in where.items() if key != "levels"},
        "unlearning": 0,
        "row": each["key"],
        "density": density,
        "learning_rate": each["learning_rate"] or 1e-3,
        "steps": 64,
        "samples": {"forget": 252, "retain": 64 * (each["retain_batch"] or 4)},
        "fixed": {name: curve[-1][name] for name in ("columns", "utility")},
        "matched": at,
        "searched": 64,
        "curve": curve,
        "collapsed": "42 % of answers are gibberish" if collapsed else None,
    }


def _quantities(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for column in ("utility", *COLUMNS):
        mean = sum(v["utility"] if column == "utility" else v["columns"][column] for v in values) / len(values)
        n = sum(N[c] for c in UTILITY) if column == "utility" else N[column]
        ci95 = [max(0.0, mean - 0.045), min(1.0, mean + 0.045)]
        found[column] = {"mean": mean, "ci95": ci95, "levels": len(values), "n": n * len(values)}
    return found


def _summary(
    fixed: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]] | None, noise: random.Random
) -> dict[str, Any]:
    quantities = _quantities(fixed)
    matched = None
    if cells is not None:
        reached = [cell["matched"] for cell in cells if cell["matched"]]
        matched = {
            "reached": len(reached),
            "levels": len(cells),
            "step": sum(point["step"] for point in reached) / len(reached) if reached else None,
            "columns": _quantities(reached) if reached else {},
        }
    outcomes = {}
    for column in ("forget_vqa", "forget_qa", "retain_vqa"):
        right = quantities[column]["mean"]
        parts = [noise.random() + 0.05 for _ in OUTCOMES[1:]]
        shares = [right, *((1 - right) * part / sum(parts) for part in parts)]
        outcomes[column] = dict(zip(OUTCOMES, shares, strict=True))
    fallen = sum(cell["collapsed"] is not None for cell in cells or ())
    return {
        "fixed": quantities,
        "matched": matched,
        "outcomes": outcomes,
        "collapsed": fallen,
        "cells": len(fixed),
    }
