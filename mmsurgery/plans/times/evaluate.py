"""How long scoring takes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Item
from mmsurgery.evaluate import fluency, official, open_answers, scoring
from mmsurgery.evaluate.asked import Asked
from mmsurgery.evaluate.protocols import LIKELIHOOD, OPEN
from mmsurgery.plans.times.watch import BOX, Growth, now

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.evaluate.remembered import Remembered


def eval_time(folder: Path, asked: Asked, *, models: int, judge: bool, threads: int) -> dict[str, float]:
    """Seconds by what is done: a model is loaded, and asked some questions of each column, in batches as large as the
    time allows; where there are several models, once more with what they share encoded.

    Args:
        folder: of the largest model, which is taken for all.
        models: how many are scored.
        judge: whether vanilla is loaded beside them to judge what they write.

    Raises:
        as `score` and `answers`.
    """
    from mmsurgery.backbones.loading import load
    from mmsurgery.evaluate.remembered import Remembered
    from mmsurgery.unlearn.loop import deterministic

    begun = now()
    loaded = load(folder)
    found, cache = {"loading": now() - begun}, dict[Any, Any]()
    loaded.model_sha256  # noqa: B018 - hashed once, and remembered
    begun = now()
    with deterministic(threads):
        found["loading"] += now() - begun
        scored = columns_time(loaded, asked, cache, Remembered(loaded))
        if models > 1:
            again = columns_time(loaded, asked, cache, Remembered(loaded))
            scored = {column: seconds + (models - 1) * again[column] for column, seconds in scored.items()}
    if others := models - 1 + judge:
        del loaded  # two may not fit into memory
        begun = now()
        load(folder).model_sha256  # noqa: B018 - as the loader does
        found["loading"] += others * (now() - begun)
    return {**found, **scored}


def columns_time(loaded: Loaded, asked: Asked, cache: dict[Any, Any], remembered: Remembered) -> dict[str, float]:
    """Seconds of each column, with what those before it leave behind."""
    growth = Growth()
    return {
        column: growth.seconds(
            by_picture(items),
            functools.partial(_ask, loaded, asked, cache=cache, remembered=remembered),
            BOX / len(asked.columns),
        )
        for column, items in asked.columns.items()
    }


def along_time(loaded: Loaded, items: Sequence[Item], times: int) -> float:
    """Seconds to score items so many times along a run; from the second time on they are encoded."""
    groups, cache = by_picture(items), dict[Any, Any]()

    def ask(chosen: list[Item]) -> None:
        scoring.score(loaded, chosen, cache=cache)

    first = Growth().seconds(groups, ask, BOX / 2)
    return first + (times - 1) * (Growth().seconds(groups, ask, BOX / 2) if times > 1 else 0.0)


def by_picture(items: Sequence[Item]) -> list[list[Item]]:
    """Items in groups about one picture, a text question by itself, in an order that has nothing to do with what they
    are: the same pictures are first in every column."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.image_sha256 or hashlib.sha256(item.id.encode()).hexdigest(), []).append(item)
    return [groups[key] for key in sorted(groups)]


def _ask(loaded: Loaded, asked: Asked, items: Sequence[Item], **common: Any) -> None:
    """Score items in the protocol's way."""
    if asked.protocol.name == LIKELIHOOD:
        scoring.score(loaded, items, **common)
    elif asked.protocol.name == OPEN:
        written = open_answers.write(loaded, items, **common)
        fluency.median_probabilities(loaded, items, [each.text for each in written], **common)
    else:
        shown = asked.demonstrations.items.get(items[0].column, ())
        list(official.answers(loaded, items, asked.asking, demonstrations=shown, **common))
