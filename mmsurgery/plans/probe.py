"""Whether there is room to run a few units of a verb for their time; and what a time is made of, in words."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mmsurgery.errors import MachineFault

SHARE = 3
"""A model is loaded for its time if its weights are at most this part of the free memory."""
LISTED = 0.05
"""Seconds of what is named."""


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


def no_room(weights: int, peak: int = 0) -> str | None:
    """Why a model is not loaded for its time; None if it can be.

    Args:
        weights: bytes, as they are loaded.
        peak: bytes at the fullest moment of what is timed, where that is more than a pass.
    """
    free = free_memory()
    if weights * SHARE > free:
        return (
            f"no time: the weights take {weights / 1e9:.1f} GB, more than a third of the {free / 1e9:.1f} GB that are "
            "free, so no pass was timed"
        )
    if peak > free:
        return f"no time: a step takes {peak / 1e9:.1f} GB, {free / 1e9:.1f} GB are free, so none was timed"
    return None


def predicted(ready: float, timed: Callable[[], Mapping[str, float]]) -> tuple[float | None, str]:
    """A time, and what it is made of in words, or why there is none.

    Args:
        ready: seconds that it took to get ready.
        timed: runs a few units; what is done -> seconds.
    """
    try:
        terms = {"getting ready": ready, **timed()}
    except (MachineFault, OSError) as error:  # all but the time is known without a temporary folder
        reason = error.what if isinstance(error, MachineFault) else error.strerror or str(error)
        return None, f"no time: {reason}"
    finally:
        gc.collect()  # models hang on their own hooks
    listed = ", ".join(f"{what} {seconds:.1f}" for what, seconds in terms.items() if seconds >= LISTED)
    return sum(terms.values()), (
        f"time, in s, from a few units that were run on this machine: {listed or 'next to nothing'}; without the start "
        "of the interpreter and torch; files are taken to be written as fast as temporary ones"
    )
