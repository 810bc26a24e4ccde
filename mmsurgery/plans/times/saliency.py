"""How long measuring saliency takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsurgery.data.samples import Sample
from mmsurgery.memory import Layout
from mmsurgery.plans.times.files import saving_map, snapshots
from mmsurgery.plans.times.watch import BOX, LEAST, Watch, in_turn, now, watched

if TYPE_CHECKING:
    from mmsurgery.artifacts.saliency_map import SaliencyMap

MOST = 4 * LEAST
"""Batches of a part that are run."""


def saliency_time(
    folder: Path,
    samples: Mapping[str, Sequence[Sample]],
    sums: Mapping[str, int],
    *,
    estimator: str,
    batch_size: int,
    store: str,
    layout: Layout,
    threads: int,
) -> dict[str, float]:
    """Seconds by what is done: the model is loaded; a batch is measured, and a part of its map saved; then, of each
    part, a few batches are measured by the estimator.

    Args:
        samples: part -> its samples.
        sums: part -> bytes of its sums.

    Raises:
        as `measure_saliency`.
    """
    from mmsurgery.backbones.loading import load
    from mmsurgery.saliency.measure import cpu_threads, measure_saliency

    def measure(chosen: Sequence[Sample], watch: Watch) -> SaliencyMap:
        return measure_saliency(
            loaded, chosen, estimator=estimator, batch_size=batch_size, progress=watch, layout=layout
        )

    begun = now()
    loaded = load(folder)
    found, saving = {"loading": now() - begun}, 0.0
    loaded.model_sha256  # noqa: B018 - hashed once, and remembered
    with cpu_threads(threads):
        batches = {part: in_batches(members, batch_size) for part, members in samples.items()}
        warm, begun = Watch(1, math.inf), now()
        measured = measure(next(iter(batches.values()))[0], warm)
        around, first = now() - begun - sum(warm.times), sum(warm.times)
        written = saving_map(measured, store)
        del measured
        for part, members in samples.items():
            chosen = [sample for batch in batches[part][:MOST] for sample in batch]
            seen = watched(lambda watch: measure(chosen, watch), work=len(members), box=BOX / len(samples))  # noqa: B023
            found[part] = around + seen.seconds + max(first - seen.times[0], 0.0)
            first = 0.0  # libraries are loaded once
            found[part] += snapshots(found[part], sums[part], written)
            saving += written * sums[part]
    return {**found, "saving": saving}


def in_batches(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """The whole batches of samples as they follow each other, in the order in which they are timed; a part that is
    smaller than a batch is one."""
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    return in_turn([batch for batch in batches if len(batch) == size] or batches, length)


def length(samples: Sequence[Sample]) -> float:
    """How long a padded batch is, in characters; a picture is long."""
    longest = max((len(sample.question) + len(sample.answer) for sample in samples), default=0)
    pictures = sum(sample.image_bytes is not None for sample in samples)
    return len(samples) * longest + PICTURE * pictures


PICTURE = 2000
"""Characters that a picture counts as."""
