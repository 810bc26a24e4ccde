"""Reference outputs, computed before the first step where they fit, so that no second model stays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from mmsurgery.data.samples import Sample
from mmsurgery.errors import UnusableData
from mmsurgery.methods.step import IGNORED, Answers
from mmsurgery.ranks import ALONE, Ranks
from mmsurgery.workspace import Progress

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded


CACHE = 1 << 30
"""Bytes of reference distributions that are kept in memory; a constant, so that a resumed run does as before."""


def distribution_bytes(loaded: Loaded, samples: Sequence[Sample], places: Iterable[int]) -> int:
    """What `retain_distribution` would keep: 4 V bytes an answer token of each sample, counted without pictures."""
    texts = [dataclasses.replace(samples[place], image_bytes=None) for place in sorted(set(places))]
    tokens = 0
    for start in range(0, len(texts), 64):
        batch = loaded.backbone.collate(loaded.processor, texts[start : start + 64])
        tokens += int((batch["labels"] != IGNORED).sum())
    return 4 * tokens * int(loaded.model.get_output_embeddings().weight.shape[0])


def forget_logprob(
    loaded: Loaded,
    samples: Sequence[Sample],
    places: Iterable[int],
    *,
    batch_size: int,
    ranks: Ranks = ALONE,
    progress: Progress,
) -> dict[int, torch.Tensor]:
    """Place of a sample -> log-probability of its whole answer, a float32 scalar in nats.

    Args:
        places: of several ranks each has its own.
        ranks: those that the model is cut up among.
    """

    def split(answers: Answers) -> Sequence[torch.Tensor]:
        return answers.sequence_logprob().unbind()

    return _collect(loaded, samples, places, split, batch_size, ranks, progress)


def retain_distribution(
    loaded: Loaded,
    samples: Sequence[Sample],
    places: Iterable[int],
    *,
    batch_size: int,
    ranks: Ranks = ALONE,
    progress: Progress,
) -> dict[int, torch.Tensor]:
    """Place of a sample -> log-probabilities of every token at its answer positions, float32
    `[answer tokens, V]` in nats: 4 V bytes an answer token, for the planned samples only. Arguments as
    `forget_logprob`."""

    def split(answers: Answers) -> Sequence[torch.Tensor]:
        ends = answers.counts.cumsum(dim=0).tolist()
        values = answers.log_probabilities()
        return [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    return _collect(loaded, samples, places, split, batch_size, ranks, progress)


def _collect(
    loaded: Loaded,
    samples: Sequence[Sample],
    places: Iterable[int],
    per_sample: Callable[[Answers], Sequence[torch.Tensor]],
    batch_size: int,
    ranks: Ranks,
    progress: Progress,
) -> dict[int, torch.Tensor]:
    """All ranks run the model equally often: one that has fewer samples runs its first ones again."""
    import torch

    wanted, device = sorted(set(places)), next(loaded.model.parameters()).device
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad(), progress.stage("reference outputs", len(wanted)) as advance:
        for start in range(0, max(ranks.exchange(len(wanted))), batch_size):
            chunk = wanted[start : start + batch_size] or wanted[:1]
            mine = [samples[place] for place in chunk]
            batch = loaded.backbone.collate(loaded.processor, mine)
            answers = Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()}, mine)
            for place, value in zip(chunk, per_sample(answers), strict=True):
                if not bool(torch.isfinite(value).all()):
                    raise UnusableData(
                        f"the reference model's output for sample {samples[place].id} is not finite",
                        "check the model's weights",
                    )
                found[place] = value.clone()
            advance(len(chunk) if start < len(wanted) else 0)
    return found
