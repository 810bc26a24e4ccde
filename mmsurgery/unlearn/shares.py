"""What each of several ranks runs of a batch that one process would run as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from mmsurgery.ranks import Ranks


@dataclass(frozen=True)
class Share:
    """A rank's samples of a batch.

    All ranks run together, forward and backward: one that has no sample of its own runs the batch's first one, which
    counts nothing.
    """

    places: tuple[int, ...]
    """At least one of a batch that has any."""
    weight: float
    """Of the mean over these samples in the mean over the batch."""

    @classmethod
    def of(cls, batch: tuple[int, ...], ranks: Ranks) -> Share:
        """This rank's share of a batch. What looks at no batch counts the same on all ranks."""
        if not batch:
            return cls((), 1 / ranks.count)
        own = batch[ranks.share(len(batch))]
        return cls(own or batch[:1], len(own) / len(batch))
