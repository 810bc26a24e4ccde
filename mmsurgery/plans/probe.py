"""Time of a pass on this machine, measured on two samples where the model is small enough."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Sample
from mmsurgery.plans.sizes import Sizes

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded

PROBED = 2
"""Samples of a probe."""
SHARE = 3
"""A model is loaded for a probe if its weights are at most this part of the free memory."""

Pass = Callable[["Loaded", Sequence[Any]], Any]


def free_memory() -> int:
    """Bytes that are free, or can be freed, of the memory that models are put into: that of the visible GPU, else
    main memory; 0 where the system does not say."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def probed(
    sizes: Sizes,
    folder: Path,
    samples: Mapping[str, Sequence[Any]],
    run: Pass,
    *,
    threads: int,
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, float] | None, str]:
    """Seconds a sample, by part, and what is to be said of it; None where the model is too large.

    Args:
        samples: part -> its samples, two of which are run, once to warm up and once for the time.
        run: what is timed.
        dtype: that the model is loaded in; its own where None.
    """
    weights, free = sizes.loaded if dtype is None else sizes.count() * dtype.itemsize, free_memory()
    if weights * SHARE > free:
        return None, (
            f"no time: the weights take {weights / 1e9:.1f} GB, more than a third of the {free / 1e9:.1f} GB that are "
            "free, so no pass was timed"
        )
    import torch

    from mmsurgery.backbones.loading import load
    from mmsurgery.saliency.parts import cpu_threads

    loaded, found = load(folder, dtype), {}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    with cpu_threads(threads):
        for part, members in samples.items():
            chosen = list(members[:PROBED])
            run(loaded, chosen)
            wait()
            begun = time.perf_counter()
            run(loaded, chosen)
            wait()
            found[part] = (time.perf_counter() - begun) / max(len(chosen), 1)
    return found, f"time from {PROBED} samples of each kind, timed once on this machine"


def _nothing() -> None:
    """A CPU is done when it returns."""


def backward(loaded: Loaded, samples: Sequence[Sample]) -> None:
    """One forward and backward pass, gradients of all weights; they are dropped."""
    from mmsurgery.methods.step import Answers

    batch = loaded.backbone.collate(loaded.processor, samples)
    device = next(loaded.model.parameters()).device
    answers = Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()})
    answers.nll().mean().backward()  # type: ignore[no-untyped-call]
    loaded.model.zero_grad(set_to_none=True)
