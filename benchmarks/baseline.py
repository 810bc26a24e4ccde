"""The straightforward way to do what mmsurgery does, for comparison: gradients kept, copied and added up batch by
batch in Python, masks of one byte a weight, whole checkpoints loaded to be compared, every option a row of its own.

Plain code with the same results, as far as the straightforward way has them; inputs are encoded as in mmsurgery.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import Loaded
from mmsurgery.data.samples import Item, Sample
from mmsurgery.methods.step import Answers

Tensors = dict[str, torch.Tensor]
EPSILON = 1e-15


def fisher(loaded: Loaded, samples: Sequence[Sample], batch_size: int) -> Tensors:
    """Mean over batches of the squared gradient of a batch's mean loss, in main memory."""
    model, total = loaded.model, Tensors()
    model.requires_grad_(True)
    count = math.ceil(len(samples) / batch_size)
    for start in range(0, len(samples), batch_size):
        model.zero_grad()
        batch = loaded.backbone.collate(loaded.processor, samples[start : start + batch_size])
        losses(loaded, batch).mean().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                squared = parameter.grad.cpu() ** 2 / count
                total[name] = total[name] + squared if name in total else squared
    model.zero_grad()
    return total


def losses(loaded: Loaded, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`[B]`, nats: mean answer loss of each sample of a batch on the host."""
    where = next(loaded.model.parameters()).device
    return Answers.of(loaded.model, {name: value.to(where) for name, value in batch.items()}).nll()


def bool_mask(forget: SaliencyMap, preserve: Sequence[SaliencyMap], beta: float = 1.0) -> Tensors:
    """Where forget over preserve saliency reaches beta; all maps are read whole first."""
    top = {name: torch.from_numpy(forget.arrays[name] / forget.units) for name in forget.arrays}
    units, below = sum(part.units for part in preserve), Tensors()
    for part in preserve:
        for name in part.arrays:
            values = torch.from_numpy(part.arrays[name])
            below[name] = below[name] + values if name in below else values
    below = {name: values / units for name, values in below.items()}
    return {
        name: (values + EPSILON) / (below.get(name, torch.zeros_like(values)) + EPSILON) >= beta
        for name, values in top.items()
    }


class MaskedSteps:
    """Gradient Difference whose ascent is multiplied by a mask of one byte a weight (Eq. 3), and AdamW.

    Args:
        mask: None for a step without one.
    """

    def __init__(self, loaded: Loaded, mask: Tensors | None, learning_rate: float, weight_decay: float) -> None:
        self.loaded, self.mask = loaded, mask
        loaded.model.requires_grad_(True)
        self.rate, self.decay = learning_rate, weight_decay

    def run(self, steps: Sequence[tuple[Sequence[Sample], Sequence[Sample]]], clip_norm: float) -> None:
        """A forget and a retain batch each; the optimizer begins anew."""
        model, names = self.loaded.model, dict(self.loaded.model.named_parameters())
        optimizer = torch.optim.AdamW(names.values(), lr=self.rate, weight_decay=self.decay)
        for forget, retain in steps:
            optimizer.zero_grad()
            (-self._loss(forget)).backward()
            if self.mask is not None:
                for name, parameter in names.items():
                    if parameter.grad is not None and name in self.mask:
                        parameter.grad *= self.mask[name].to(parameter.device)
            self._loss(retain).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
        model.zero_grad()

    def _loss(self, samples: Sequence[Sample]) -> torch.Tensor:
        batch = self.loaded.backbone.collate(self.loaded.processor, samples)
        return losses(self.loaded, batch).mean()


def largest(before: Sequence[Path], after: Sequence[Path], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest differences of two checkpoints' files, and their places in all weights laid end to end by name."""
    from safetensors.torch import load_file

    one, other = ({k: v for path in sorted(paths) for k, v in load_file(path).items()} for paths in (before, after))
    difference = torch.cat([(other[name].float() - one[name].float()).abs().flatten() for name in sorted(one)])
    found = torch.topk(difference, count)
    return found.values, found.indices


def option_scores(loaded: Loaded, items: Sequence[Item]) -> list[dict[str, float]]:
    """Letter -> mean log-probability of an option, nats a token; a batch for each item, a whole row for each option."""
    found = []
    with torch.no_grad():
        for item in items:
            options: dict[str, Any] = dict(item.options or {})
            rows = [
                Sample(item.id, item.person, item.question, answer=text, image_bytes=item.image_bytes)
                for text in options.values()
            ]
            batch = loaded.backbone.collate(loaded.processor, rows)
            values = -losses(loaded, batch)
            found.append(dict(zip(options, values.tolist(), strict=True)))
    return found


def combine(one: Mapping[str, np.ndarray[Any, Any]], other: Mapping[str, np.ndarray[Any, Any]]) -> int:
    """`a & b` of masks of one byte a weight, and its count."""
    return sum(int(np.logical_and(values, other[name]).sum()) for name, values in one.items())
