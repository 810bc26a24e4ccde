"""How long samples are in tokens, from a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmsurgery.backbones.encoding import IGNORED, PICTURE_BYTES
from mmsurgery.data.samples import Sample
from mmsurgery.plans.sizes import Rows, Sizes

LOOKED_AT = 16
"""Samples of a part that are encoded, evenly spread; and the `LONGEST` of most characters."""
LONGEST = 4


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What the samples of a part are in tokens."""

    samples: int
    mean: float
    """Tokens of a sample."""
    tokens: int
    """Of the longest."""
    answer: int
    """Answer tokens of the longest answer."""
    positions: int
    """Of the vision encoder, of the largest picture."""
    encoded: int
    """Bytes of all different pictures as the model takes them, as far as they are remembered."""
    files: int
    """Bytes of all different pictures as they are in the benchmark's files."""

    @property
    def total(self) -> int:
        """Tokens of all samples."""
        return round(self.mean * self.samples)

    def batch(self, size: int) -> Rows:
        """A batch of the longest samples."""
        size = min(size, self.samples)
        return Rows(tokens=size * self.tokens, positions=size * self.positions, answers=size * self.answer)


def lengths(sizes: Sizes, processor: Any, samples: Sequence[Sample]) -> Lengths:
    """Lengths of a part's samples.

    Raises:
        as `Backbone.collate`.
    """
    cache: dict[Any, Any] = {}
    chosen = {id(sample): sample for sample in spread(samples, LOOKED_AT)}
    longest = sorted(samples, key=lambda sample: -len(sample.question) - len(sample.answer))[:LONGEST]
    batches = [
        sizes.family.collate(processor, [sample], cache=cache)
        for sample in {**chosen, **{id(sample): sample for sample in longest}}.values()
    ]
    of_chosen = [batch["input_ids"].numel() for batch in batches[: len(chosen)]]
    pictures = [
        sum(value.numel() * value.element_size() for value in batch.values() if value.is_floating_point())
        for batch in batches
    ]
    values = [sum(value.numel() for value in batch.values() if value.is_floating_point()) for batch in batches]
    different = {sample.image_sha256: len(sample.image_bytes) for sample in samples if sample.image_bytes is not None}
    return Lengths(
        samples=len(samples),
        mean=sum(of_chosen) / max(len(of_chosen), 1),
        tokens=max((batch["input_ids"].numel() for batch in batches), default=0),
        answer=max((int((batch["labels"] != IGNORED).sum()) for batch in batches), default=0),
        positions=max(values, default=0) // sizes.patch,
        encoded=min(PICTURE_BYTES, len(different) * max(pictures, default=0)),
        files=sum(different.values()),
    )


def spread(samples: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly spread."""
    step = max(1, -(-len(samples) // count))
    return list(samples[::step])
