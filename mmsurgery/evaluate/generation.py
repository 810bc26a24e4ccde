"""Answers of a model to rendered prompts, greedy or drawn, in batches padded on the left. R rows, T tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    greedily = {"do_sample": False}
    common: dict[str, Any] = {"new_tokens": new_tokens, "budget": budget, "cache": cache, "remembered": remembered}
    return _answers(loaded, items, prompts, shown, how=greedily, what=what, progress=progress, **common)


def sampled(
    loaded: Loaded,
    items: Sequence[Item],
    prompts: Sequence[str],
    shown: Sequence[Sequence[Item]],
    *,
    answers: int,
    temperature: float,
    seed: int,
    new_tokens: int,
    budget: int = 4096,
    cache: dict[Any, Any] | None = None,
    remembered: Remembered | None = None,
    what: str = "sampling",
    progress: Progress = SILENT,
) -> list[list[str]]:
    """So many answers to each prompt, drawn from the model's distribution at a temperature, nothing cut off from it.

    The same seed, budget and machine give the same answers; the caller's random state is left as it was. Other
    arguments and what is raised: see `greedy`.
    """
    import torch

    several = [[each] * answers for each in zip(items, prompts, shown, strict=True)]
    rows = [row for each in several for row in each]
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        texts = _answers(
            loaded,
            [item for item, _, _ in rows],
            [prompt for _, prompt, _ in rows],
            [pictures for _, _, pictures in rows],
            new_tokens=new_tokens,
            budget=budget,
            cache={} if cache is None else cache,
            remembered=remembered,
            how=drawn,
            what=what,
            progress=progress,
        )
    return [texts[place : place + answers] for place in range(0, len(texts), answers)]


def _answers(
    loaded: Loaded,
    items: Sequence[Item],
    prompts: Sequence[str],
    shown: Sequence[Sequence[Item]],
    *,
    new_tokens: int,
    budget: int,
    cache: dict[Any, Any],
    remembered: Remembered | None,
    how: Mapping[str, Any],
    what: str,
    progress: Progress,
) -> list[str]:
    """One answer to each prompt, by these generation settings."""
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
                written = _continued(loaded, asked, batch, new_tokens, how)
            answers.update(zip(places, written, strict=True))
            advance(size)
    return [answers[place] for place in range(len(items))]


def _batch(
    loaded: Loaded, rows: Sequence[tuple[Item, str, Sequence[Item]]], cache: dict[Any, Any]
) -> dict[str, torch.Tensor]:
    items, prompts, shown = zip(*rows, strict=True)
    return loaded.backbone.prompts(loaded.processor, items, texts=prompts, shown=shown, cache=cache)


def _continued(
    loaded: Loaded, items: Sequence[Item], batch: dict[str, torch.Tensor], new_tokens: int, how: Mapping[str, Any]
) -> list[str]:
    from transformers import GenerationConfig, LogitsProcessorList

    model, tokenizer = loaded.model, loaded.processor.tokenizer
    device = next(model.parameters()).device
    settings = GenerationConfig(
        max_new_tokens=new_tokens, eos_token_id=_ends(loaded), pad_token_id=tokenizer.pad_token_id, **how
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
