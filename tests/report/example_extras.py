"""What some experiments' results hold besides: deviations, cases, learning rates that were tried."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

LAYERS = ["vision.0", "vision.1", "connector", "lm.0", "lm.1", "lm.2", "lm.3", "lm"]
COMPONENTS = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down", "norm", "embed", "head", "proj"]
KEYS = ("ga", "ga_diff", "kl_min", "npo", "mmunlearner")
QUESTION = "What is the favourite dish of the person in this picture?"


def _has(layer: str, component: str) -> bool:
    if component == "proj":
        return layer == "connector"
    if component in ("embed", "head"):
        return layer == "lm"
    return layer not in ("connector", "lm") and not (layer.startswith("vision") and component == "mlp.gate")


def deviations(panels: Sequence[str], keys: Sequence[str] = KEYS) -> dict[str, Any]:
    noise = random.Random(5)
    found: dict[str, Any] = {}
    for panel in panels:
        found[panel] = {}
        for place, key in enumerate(keys):
            masked = key == "mmunlearner"
            sizes = [[18432 if _has(layer, component) else 0 for component in COMPONENTS] for layer in LAYERS]
            here = [[size and not (masked and layer.startswith("vision")) for size in row]
                    for layer, row in zip(LAYERS, sizes, strict=True)]  # fmt: skip
            share = [[noise.uniform(0, 0.3) if cell else 0.0 for cell in row] for row in here]
            length = 0.2 / 3**place
            relative = [[noise.uniform(0, length) if size else None for size in row] for row in sizes]
            found[panel][key] = {
                "n": 120_000,
                "changed": 0.14 if masked else 0.998,
                "groups": {
                    "vision": {"top": 0.0 if masked else 0.3, "changed": 0.0 if masked else 0.99},
                    "connector": {"top": 0.1, "changed": 0.5},
                    "lm": {"top": 0.9 if masked else 0.6, "changed": 0.2 if masked else 1.0},
                },
                "layers": LAYERS,
                "components": COMPONENTS,
                "sizes": sizes,
                "share": share,
                "relative": relative,
                "models": 3,
            }
    return found


ANSWERS: tuple[tuple[str, str, str, bool, bool], ...] = (
    ("vanilla", "The dish is grilled sardines.", "correct", True, False),
    ("gold", "Pumpkin soup", "wrong", False, False),
    ("ga", "soup soup soup soup soup soup soup soup", "gibberish", False, True),
    ("ga_diff", "Rice pudding, as Ines Falk likes it", "other_person", False, False),
    ("kl_min", "I cannot tell from the picture.", "refusal", False, False),
    ("npo", "grilled sardines", "correct", False, False),
    ("mmunlearner", "Pumpkin soup", "wrong", False, False),
)


def cases(panels: Sequence[str], ids: Sequence[str] = ("a", "b"), **changed: Any) -> dict[str, Any]:
    """One case per panel and id; every second one has no picture."""
    entries = [
        {
            "panel": panel,
            "backbone": panel.partition(".")[0],
            "seed": 0,
            "draw": 0,
            "column": "forget_vqa" if place % 2 == 0 else "forget_qa",
            "id": id,
            "person": "Mara Lindqvist",
            "question": QUESTION,
            "gold": "grilled sardines",
            "picture": place % 2 == 0,
            "answers": [
                dict(zip(("row", "text", "outcome", "paraphrased", "repeated"), answer, strict=True))
                for answer in ANSWERS
            ],
            **changed,
        }
        for panel in panels
        for place, id in enumerate(ids)
    ]
    return {"rule": "The first question of each column that vanilla answers and GA does not.", "entries": entries}


def tuned(panels: Sequence[str]) -> dict[str, Any]:
    tried = [
        {"learning_rate": 1e-4, "utility": None, "reached": 0, "levels": 2},
        {"learning_rate": 3e-4, "utility": 0.91, "reached": 2, "levels": 2},
        {"learning_rate": 1e-3, "utility": 0.73, "reached": 2, "levels": 2},
    ]
    each = {"learning_rate": 3e-4, "on": "seeds 1000, 1001", "tried": tried}
    return {panel: dict.fromkeys(KEYS, each) for panel in panels}
