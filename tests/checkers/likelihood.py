"""Option likelihoods recomputed the slow way: one option at a time, float64, no batch, no cache, no collator."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def option_scores(
    model: Any, processor: Any, question: str, options: Mapping[str, str], image: Any = None
) -> dict[str, float]:
    """Letter -> mean log-probability, nats per token, of option text and end token after the prompt.

    Args:
        model: a LLaVA; a float64 copy is used.
        processor: with a word-level tokenizer, so that the prompt's tokens are a prefix of the whole text's.
        image: PIL picture or None.
    """
    double = copy.deepcopy(model).double()
    return {letter: _mean_logprob(double, processor, question, text, image) for letter, text in options.items()}


def _mean_logprob(model: Any, processor: Any, question: str, answer: str, image: Any) -> float:
    content = [{"type": "image"}] if image is not None else []
    turn = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    whole = f"{prompt} {answer} {processor.tokenizer.eos_token}"
    ids = {text: _inputs(processor, text, image) for text in (prompt, whole)}
    start = ids[prompt]["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**ids[whole], use_cache=False).logits[0].numpy()
    tokens = ids[whole]["input_ids"][0].numpy()
    scores = []
    for position in range(start, len(tokens)):
        row = logits[position - 1]
        scores.append(row[tokens[position]] - np.log(np.exp(row - row.max()).sum()) - row.max())
    return float(np.mean(scores))


def _inputs(processor: Any, text: str, image: Any) -> dict[str, Any]:
    inputs = dict(processor(text=text, images=image, return_tensors="pt"))
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].double()
    return inputs
