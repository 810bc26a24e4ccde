"""Options scored from shared prefixes against whole rows, and how often a picture goes through the vision tower."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import baseline
import measure
import models

from mmsurgery.backbones.loading import load
from mmsurgery.evaluate import scoring
from mmsurgery.evaluate.run import evaluate
from stages import Setup, forwards, weights

PICTURES = {"tiny": 2, "1M": 16, "30M": 8, "190M": 8}
"""By size of the model; 4 of any other. A run looks once at whether prefixes may be shared, which takes as long as
three of them do."""
QUESTIONS = 3
"""About each picture."""


def run(setup: Setup) -> Iterator[measure.Figure]:
    for family, size, model in setup.models():
        loaded = load(models.checkpoint(setup.work, family, size))
        asked = models.items(family, size, PICTURES.get(size, 4), questions=QUESTIONS)
        found = measure.in_turn(
            {
                "shared prefixes": lambda loaded=loaded, asked=asked: scoring.score(loaded, asked),
                "rows of their own": lambda loaded=loaded, asked=asked: baseline.option_scores(loaded, asked),
            },
            setup.rounds,
        )
        count = weights(loaded)
        yield measure.ratio(
            found, "shared prefixes", "rows of their own", baseline="rows of their own", what="scoring options",
            against="every option a row of its own", model=model, **setup.goal(count, 0.5),
            detail={"weights": count, "items": len(asked), "options": sum(len(item.options or ()) for item in asked)},
        )  # fmt: skip
        del loaded
        measure.free()
    for family in setup.families:
        yield pictures(setup, family, setup.sizes[0])


def pictures(setup: Setup, family: str, size: str) -> measure.Figure:
    """Passes of a picture through the vision tower while a model is evaluated in all columns, aside from those of the
    method's check of itself on the first picture of a column."""
    root = setup.work / f"pictures-{family}"
    shutil.rmtree(root, ignore_errors=True)
    workspace = models.workspace(root, family, size)
    passes: Counter[str] = Counter()

    def look(inputs: Mapping[str, Any]) -> None:
        if (values := inputs.get("pixel_values")) is not None:
            grid = inputs.get("image_grid_thw")
            patches = [1] * len(values) if grid is None else grid.prod(dim=1).tolist()
            for each in values.split(patches):
                passes[hashlib.sha256(each.cpu().numpy().tobytes()).hexdigest()] += 1

    with forwards(look):
        evaluate(workspace, ["vanilla"], force=True)
        checked = passes.copy()
        passes.clear()
        with mock.patch.object(scoring, "prefixes_hold", return_value=True):
            evaluate(workspace, ["vanilla"], force=True)
    shutil.rmtree(root)
    return measure.Figure(
        model=f"{family} {size}", what="passes of a picture through the vision tower", unit="passes",
        value=max(passes.values()), limit=1.0,
        detail={"pictures": len(passes), "passes": passes.total(), "passes with the check": checked.total()},
    )  # fmt: skip


TASKS: dict[str, Callable[..., Callable[[], Any]]] = {}
