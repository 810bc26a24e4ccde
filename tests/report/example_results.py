"""An experiment's results as `mmsurgery.experiments` writes them, with invented numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from mmsurgery.provenance import SCHEMA, provenance, seal

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
MASK = {"rule": "ratio", "beta": 1.0, "modules": "lm,connector"}
ROWS: dict[str, tuple[str, Any, float, float]] = {
    # key -> label, mask, how fast it forgets, what it costs
    "ga": ("GA", None, 3.4, 0.42),
    "ga_diff": ("GA_Diff", None, 2.2, 0.16),
    "kl_min": ("KL_Min", None, 1.4, 0.14),
    "npo": ("NPO", None, 1.0, 0.22),
    "mmunlearner": ("MMUnlearner", MASK, 1.9, 0.13),
}


def _columns(forget: float, kept: float, noise: random.Random) -> dict[str, Any]:
    columns = {"forget_vqa": forget} | {c: min(1.0, max(0.0, kept + noise.uniform(-0.03, 0.03))) for c in UTILITY}
    return {"columns": columns, "utility": sum(columns[c] for c in UTILITY) / len(UTILITY)}


def _curve(speed: float, cost: float, noise: random.Random) -> list[dict[str, Any]]:
    points = []
    for step in range(0, 65, 4):
        left = math.exp(-speed * step / 40)
        forget = 0.28 + 0.71 * left + (noise.uniform(-0.02, 0.02) if step else 0.0)
        kept = 0.97 - cost * (1 - left) ** 1.6 - 0.08 * cost * step / 16
        points.append({"step": step, **_columns(min(forget, 1.0), kept, noise)})
    return points


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cells(values: Sequence[dict[str, Any]], levels: int) -> dict[str, Any]:
    found = {}
    for column in ("utility", *COLUMNS):
        mean = _mean([v["utility"] if column == "utility" else v["columns"][column] for v in values])
        low, high = max(0.0, mean - 0.045), min(1.0, mean + 0.045)
        n = sum(N[c] for c in UTILITY) if column == "utility" else N[column]
        found[column] = {"mean": mean, "ci95": [low, high], "levels": levels, "n": n * levels}
    return found


def _cell(backbone: str, seed: int, key: str, noise: random.Random, target: float) -> dict[str, Any]:
    _, mask, speed, cost = ROWS[key]
    curve = _curve(speed, cost, noise)
    fixed = {name: curve[-1][name] for name in ("columns", "utility")}
    at = next((point for point in curve if point["columns"]["forget_vqa"] <= target), None)
    return {
        "backbone": backbone,
        "seed": seed,
        "draw": 0,
        "row": key,
        "model": f"{key}-{seed:08x}",
        "model_sha256": f"{seed + 7:064x}",
        "run_key": f"{seed + 9:064x}",
        "density": 0.151 if mask else None,
        "steps": 64,
        "samples": {"forget": 252, "retain": 0 if key in ("ga", "npo") else 256},
        "fixed": fixed,
        "matched": None if at is None else {**at, "step": at["step"] - 0.5},
        "searched": 64,
        "curve": curve,
        "remarks": [],
    }


def _summary(level_ends: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    levels = len(level_ends)
    found: dict[str, Any] = {
        name: {"fixed": _cells([end[name] for end in level_ends], levels), "matched": None}
        for name in ("vanilla", "gold")
    }
    for key in ROWS:
        mine = [cell for cell in cells if cell["row"] == key]
        reached = [cell["matched"] for cell in mine if cell["matched"]]
        found[key] = {
            "fixed": _cells([cell["fixed"] for cell in mine], levels),
            "matched": {
                "reached": len(reached),
                "levels": levels,
                "step": _mean([each["step"] for each in reached]) if reached else None,
                "columns": _cells(reached, len(reached)) if reached else {},
            },
        }
    return found


def _paired(backbone: str, summary: dict[str, Any], levels: int) -> list[dict[str, Any]]:
    found = []
    for comparison in ("fixed", "matched"):
        for quantity in ("utility", "forget_vqa"):
            if (comparison, quantity) == ("matched", "forget_vqa"):
                continue
            for other in list(ROWS)[:-1]:
                sides = [summary[key][comparison] for key in ("mmunlearner", other)]
                columns = [side["columns"] if comparison == "matched" else side for side in sides]
                if any(quantity not in each for each in columns):
                    continue
                difference = columns[0][quantity]["mean"] - columns[1][quantity]["mean"]
                resolved = abs(difference) > 0.03
                found.append(
                    {
                        "backbone": backbone,
                        "comparison": comparison,
                        "quantity": quantity,
                        "first": "mmunlearner",
                        "second": other,
                        "difference": difference,
                        "ci95": [difference - 0.03, difference + 0.03],
                        "p_value": 0.002 if resolved else 0.4,
                        "levels": levels,
                        "same_sign": levels if resolved else levels - 1,
                        "resolved": resolved,
                    }
                )
    return found


def results(name: str = "table1", backbones: Sequence[str] = ("llava", "qwen2_vl"), seeds: int = 3) -> dict[str, Any]:
    """A sealed record with a level per backbone and seed."""
    noise, levels, cells = random.Random(name), [], []
    summary, paired = {}, []
    for backbone in backbones:
        ends, mine = [], []
        for seed in range(seeds):
            vanilla = {"model_sha256": f"{seed + 1:064x}", **_columns(0.99, 0.965, noise)}
            gold = {"model_sha256": f"{seed + 2:064x}", **_columns(0.31 + 0.02 * seed, 0.955, noise)}
            target = gold["columns"]["forget_vqa"] + 0.05
            level = {"backbone": backbone, "seed": seed, "draw": 0, "folder": f"experiments/levels/{backbone}.{seed}"}
            n = {"n": N, "people": dict.fromkeys(N, 12)}
            ends.append({**level, "vanilla": vanilla, "gold": gold, "target": target, **n})
            mine += [_cell(backbone, seed, key, noise, target) for key in ROWS]
        levels += ends
        cells += mine
        summary[backbone] = _summary(ends, mine)
        paired += _paired(backbone, summary[backbone], seeds)
    rows = [
        {
            "key": key,
            "label": label,
            "method": key,
            "mask": mask,
            "scope": "forget",
            "reference": "reference" if key == "npo" else None,
            "forget_weight": 1.0,
            "retain_batch": None,
        }
        for key, (label, mask, _, _) in ROWS.items()
    ]
    return seal(
        {
            "schema": SCHEMA,
            "kind": "experiment",
            "name": name,
            "rows": rows,
            "columns": {key: {"label": label, "chance": 0.25} for key, label in COLUMNS.items()},
            "utility": UTILITY,
            "levels": levels,
            "cells": cells,
            "summary": summary,
            "paired": paired,
            "provenance": provenance("experiment", {"experiment": name, "seeds": seeds}, {"models": f"{5:064x}"}),
        }
    )
