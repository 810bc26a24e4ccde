"""Fisher sums by their definition, one sample and one plain backward pass at a time; nothing of mmsurgery.

A batch is a dictionary of model inputs of one sample, with `labels` `[1, T]`, -100 where nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Gradients = dict[str, torch.Tensor]


def sample_gradient(model: Any, batch: Mapping[str, torch.Tensor]) -> Gradients:
    """Gradient of the mean NLL of the labelled tokens; parameters that the loss does not reach are left out."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[0, :-1]
    targets = batch["labels"][0, 1:]
    chosen = [(position, int(token)) for position, token in enumerate(targets) if token != -100]
    log_probabilities = logits.log_softmax(dim=-1)
    loss = -sum(log_probabilities[position, token] for position, token in chosen) / len(chosen)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def sum_over_samples(model: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> Gradients:
    """Sum over samples of squared gradients: estimator `sample`."""
    return sum_over_batches(model, batches, 1)


def sum_over_batches(model: Any, batches: Sequence[Mapping[str, torch.Tensor]], size: int) -> Gradients:
    """Sum over batches of `size` samples, the last one perhaps smaller, of the squared mean gradient: `batch`."""
    total: Gradients = {}
    for start in range(0, len(batches), size):
        unit = batches[start : start + size]
        for name, gradient in signed_sum(model, unit).items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + (gradient / len(unit)) ** 2
    return total


def signed_sum(model: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> Gradients:
    """Sum over samples of gradients: estimator `dataset`."""
    total: Gradients = {}
    for batch in batches:
        for name, gradient in sample_gradient(model, batch).items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + gradient
    return total


def relative_difference(actual: Any, expected: torch.Tensor) -> float:
    """max|a - b| / max|b|."""
    difference = (torch.as_tensor(actual).to(expected.dtype) - expected).abs().max()
    return float(difference / expected.abs().max())
