"""Protocol `open`: questions with options, asked without them. The model writes an answer, its outcome is judged.

The prompt is that of `likelihood`: the model's own template, the question, its picture, nothing else. Greedy, until
the end token or 50 new tokens. What is right, another person's, wrong, a refusal or gibberish: see `outcomes`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.data.leakage import normalised
from mmsurgery.data.samples import Item
from mmsurgery.evaluate import outcomes
from mmsurgery.evaluate.asking import NEW_TOKENS
from mmsurgery.evaluate.generation import greedy
from mmsurgery.evaluate.others import Others
from mmsurgery.evaluate.remembered import Remembered
from mmsurgery.evaluate.scoring import eval_mode, option_samples, prompt_sha256
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

BUDGET = 4096
"""Tokens of one batch, answers included: what bounds memory."""


@dataclass(frozen=True)
class Written:
    """What a model wrote, not judged yet."""

    prompt_sha256: str
    """Digest of the rendered prompt and the picture: that of `likelihood`."""
    text: str


@dataclass(frozen=True)
class Answered:
    """One open answer."""

    id: str
    person: str
    column: str
    prompt_sha256: str
    raw_output: str
    options: Mapping[str, str]
    """Letter -> text; the model did not see them."""
    gold: str
    """The right option's letter."""
    other: str | None
    """A fact of another person that the answer says, see `Others.said`."""
    fluency: float | None
    """Probability of its median token under vanilla, in 0-1; None for an answer without a word."""

    @functools.cached_property
    def outcome(self) -> str:
        """One of `outcomes.OUTCOMES`."""
        return outcomes.outcome(self.raw_output, self.options, self.gold, other=self.other, fluency=self.fluency)

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"

    @functools.cached_property
    def paraphrased(self) -> bool:
        """Whether it is correct in other words than the option's, or than the fact alone."""
        given = {normalised(self.options[self.gold]), outcomes.facts(self.options)[self.gold]}
        return self.correct and normalised(self.raw_output) not in given

    @property
    def repeated(self) -> bool:
        """Whether it goes round in circles, see `outcomes.repeats`."""
        return outcomes.repeats(self.raw_output)

    @property
    def value(self) -> float:
        """1 or 0 for right or not."""
        return float(self.correct)

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(self.options)


def write(
    loaded: Loaded,
    items: Sequence[Item],
    *,
    budget: int = BUDGET,
    cache: dict[Any, Any] | None = None,
    remembered: Remembered | None = None,
    what: str = "writing",
    progress: Progress = SILENT,
) -> list[Written]:
    """Have items answered without their options, in their order.

    Args:
        budget: largest number of tokens of one batch, see `generation.greedy`.
        cache: a dictionary kept between calls with the same processor, see `Backbone.prompts`.
        remembered: kept between calls with the same model.
        what: name of the stage that `progress` shows.

    Raises:
        UnusableData: naming the item, if it has no options with its gold letter; as `generation.greedy`.
    """
    cache = {} if cache is None else cache
    for item in items:
        option_samples(item)  # what cannot be judged is not asked
    backbone, processor = loaded.backbone, loaded.processor
    pictured = [item.image_bytes is not None for item in items]
    with eval_mode(loaded.model):
        texts = greedy(
            loaded,
            items,
            [backbone.render(processor, i.question, None, image=p) for i, p in zip(items, pictured, strict=True)],
            [[item] if picture else [] for item, picture in zip(items, pictured, strict=True)],
            new_tokens=NEW_TOKENS,
            budget=budget,
            cache=cache,
            remembered=remembered,
            what=what,
            progress=progress,
        )
    return [Written(prompt_sha256(loaded, i, cache), text) for i, text in zip(items, texts, strict=True)]


def judged(
    items: Sequence[Item], written: Sequence[Written], others: Others, fluency: Sequence[float | None]
) -> list[Answered]:
    """What was written, with what it is judged by.

    Args:
        fluency: see `fluency.median_probabilities`, under vanilla.
    """
    return [
        Answered(
            item.id,
            item.person,
            item.column,
            each.prompt_sha256,
            each.text,
            dict(item.options or {}),
            item.gold,
            others.said(item, each.text),
            likely,
        )
        for item, each, likely in zip(items, written, fluency, strict=True)
    ]
