"""How likely a written answer is under the vanilla model: what tells wrong but fluent from word salad."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.data.leakage import normalised
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate.remembered import Remembered
from mmsurgery.evaluate.scoring import eval_mode
from mmsurgery.methods.step import Answers
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

BUDGET = 4096
"""Tokens of one pass: what bounds memory."""
DIGITS = 4
"""Decimals that are kept: batches of another size change none of them, as a rule."""


def median_probabilities(
    loaded: Loaded,
    items: Sequence[Item],
    texts: Sequence[str],
    *,
    budget: int = BUDGET,
    cache: dict[Any, Any] | None = None,
    remembered: Remembered | None = None,
    what: str = "fluency",
    progress: Progress = SILENT,
) -> list[float | None]:
    """Median probability, in 0-1, of the tokens of texts as the answers to items, in their order, under teacher
    forcing; the end token, which an answer that was cut off lacks, left out.

    None where a text has no word. 0 where the model's tokenizer cannot write it. Values do not depend on `budget`, up
    to round-off.

    Args:
        texts: one per item; control tokens in them are taken out.
        budget: largest number of tokens of one batch, padding included; at least one row.
        cache: a dictionary kept between calls with the same processor, see `Backbone.collate`.
        remembered: kept between calls with the same model.

    Raises:
        UnusableData: if an item cannot be encoded, a row exceeds the model's positions, or logits are not finite.
    """
    import torch

    cache = {} if cache is None else cache
    remembered = remembered or Remembered(loaded)
    found: dict[int, float | None] = {}
    rows: dict[int, tuple[Sample, int]] = {}
    for place, (item, text) in enumerate(zip(items, texts, strict=True)):
        plain = _without_control(loaded, text)
        if not normalised(plain):
            found[place] = None
        elif (row := _row(loaded, item, plain, cache)) is None:
            found[place] = 0.0
        else:
            rows[place] = row
    order = sorted(rows, key=lambda place: rows[place][1])
    with eval_mode(loaded.model), torch.no_grad(), progress.stage(what, len(items)) as advance:
        advance(len(found))
        while order:
            size = 1
            while size < len(order) and (size + 1) * rows[order[size]][1] <= budget:
                size += 1
            places, order = order[:size], order[size:]
            samples = [rows[place][0] for place in places]
            with remembered.pictures(samples, cache):
                found.update(zip(places, _medians(loaded, samples, cache), strict=True))
            advance(size)
    return [found[place] for place in range(len(items))]


def _without_control(loaded: Loaded, text: str) -> str:
    """A text without what the tokenizer would read as a control token or as the place of a picture."""
    added = loaded.processor.tokenizer.added_tokens_decoder.values()
    for token in sorted({loaded.processor.image_token} | {each.content for each in added if each.special}):
        text = text.replace(token, " ")
    return text


def _row(loaded: Loaded, item: Item, text: str, cache: dict[Any, Any]) -> tuple[Sample, int] | None:
    """The answered item and its length in tokens; None if the tokenizer cannot write the answer."""
    sample = Sample(item.id, item.person, item.question, image_bytes=item.image_bytes, answer=text)
    try:
        return sample, int(loaded.backbone.collate(loaded.processor, [sample], cache=cache)["input_ids"].shape[1])
    except UnusableData:
        loaded.backbone.prompts(loaded.processor, [item], cache=cache)  # raises if it is the item's own fault
        return None


def _medians(loaded: Loaded, samples: Sequence[Sample], cache: dict[Any, Any]) -> list[float]:
    batch = loaded.backbone.collate(loaded.processor, samples, cache=cache)
    device = next(loaded.model.parameters()).device
    answers = Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()}, samples)
    chosen = answers.log_probabilities().gather(1, answers.targets[:, None])[:, 0].exp()
    if not bool(chosen.isfinite().all()):
        raise UnusableData("the model's scores of written answers are not finite", "use another checkpoint")
    tokens: list[list[float]] = [[] for _ in samples]
    for owner, value in zip(answers.owners.tolist(), chosen.tolist(), strict=True):
        tokens[owner].append(value)
    return [round(statistics.median(each[:-1]), DIGITS) for each in tokens]
