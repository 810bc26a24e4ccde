"""Greedy answers of a model to rendered prompts, in batches padded on the left. R rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery.evaluate.remembered import Remembered
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.data.samples import Item


def greedy(
    loaded: Loaded,
    items: Sequence[Item],
    prompts: Sequence[str],
    shown: Sequence[Sequence[Item]],
    *,
    new_tokens: int,
    budget: int,
    cache: dict[Any, Any],
    remembered: Remembered | None = None,
    what: str = "generating",
    progress: Progress = SILENT,
) -> list[str]:
    """What the model writes after each prompt until its end token, special tokens left out, in order.

    The token of the greatest logit is taken; sampling and penalties of the model's own generation
    settings are not. Answers do not depend on `budget`, up to round-off between equally likely tokens.

    Args:
        prompts: rendered, one per item, see `Backbone.prompts`.
        shown: per item, whose pictures stand in its prompt.
        new_tokens: most tokens of an answer.
        budget: largest number of tokens of one batch, padding and answers included; at least one row.
        remembered: kept between calls with the same model.

    Raises:
        UnusableData: naming the item, for a prompt that with its answer exceeds the model's positions, or
            if logits are not finite.
    """
    import torch

    remembered = remembered or Remembered(loaded)
    rows = list(zip(items, prompts, shown, strict=True))
    lengths = [int(_batch(loaded, [row], cache)["input_ids"].shape[1]) for row in rows]
    most = loaded.model.config.get_text_config().max_position_embeddings
    for item, length in zip(items, lengths, strict=True):
        if length + new_tokens > most:
            raise UnusableData(
                f"item {item.id} of column {item.column}: prompt of {length} and answer of up to {new_tokens} tokens, "
                f"the model has {most} positions",
                "shorten the question, or ask for a shorter answer",
            )
    order = sorted(range(len(items)), key=lambda place: lengths[place])
    answers: dict[int, str] = {}
    with torch.no_grad(), progress.stage(what, len(items)) as advance:
        while order:
            size = 1
            while size < len(order) and (size + 1) * (lengths[order[size]] + new_tokens) <= budget:
                size += 1
            places, order = order[:size], order[size:]
            batch = _batch(loaded, [rows[place] for place in places], cache)
            asked = [items[place] for place in places]
            with remembered.pictures([each for place in places for each in shown[place]], cache):
                written = _continued(loaded, asked, batch, new_tokens)
            answers.update(zip(places, written, strict=True))
            advance(size)
    return [answers[place] for place in range(len(items))]


def _batch(
    loaded: Loaded, rows: Sequence[tuple[Item, str, Sequence[Item]]], cache: dict[Any, Any]
) -> dict[str, torch.Tensor]:
    items, prompts, shown = zip(*rows, strict=True)
    return loaded.backbone.prompts(loaded.processor, items, texts=prompts, shown=shown, cache=cache)


def _continued(loaded: Loaded, items: Sequence[Item], batch: dict[str, torch.Tensor], new_tokens: int) -> list[str]:
    from transformers import GenerationConfig, LogitsProcessorList

    model, tokenizer = loaded.model, loaded.processor.tokenizer
    device = next(model.parameters()).device
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=_ends(loaded), pad_token_id=tokenizer.pad_token_id
    )

    def finite(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        broken = (~logits.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if broken:
            item = items[broken[0]]
            raise UnusableData(
                f"item {item.id} of column {item.column}: the model's scores are not finite", "use another checkpoint"
            )
        return logits

    # what `settings` leave open would come from the model's own
    own, model.generation_config = model.generation_config, settings
    try:
        ids = model.generate(
            **{name: value.to(device) for name, value in batch.items()},
            generation_config=settings,
            logits_processor=LogitsProcessorList([finite]),
        )
    finally:
        model.generation_config = own
    written = ids[:, batch["input_ids"].shape[1] :].tolist()
    return [str(text) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def _ends(loaded: Loaded) -> list[int]:
    """The tokens at which an answer ends: the tokenizer's, and those of the model's generation settings."""
    known = loaded.model.get_output_embeddings().weight.shape[0]
    end = loaded.model.generation_config.eos_token_id
    ends = [loaded.processor.tokenizer.eos_token_id, *(end if isinstance(end, list) else () if end is None else (end,))]
    if any(type(token) is not int or not 0 <= token < known for token in ends):
        raise InputRefused(
            f"{loaded.path}: eos_token_id in the generation settings is {str(end)[:80]}, no token of the model",
            "copy generation_config.json of the model again",
        )
    return sorted(set(ends))
