"""Memory under a budget: where the large state of a run lies, and whether activations are computed twice.

The state of a run is what it keeps for every weight beside the model: saliency's accumulators, the optimizer's
masters and moments.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsurgery.errors import MachineFault, UsageError, unknown

if TYPE_CHECKING:
    import torch

PLACES = ("device", "host", "disk")
"""Where state lies: with the model, in main memory, in files that are gone when the run ends."""
_UNITS = {
    "": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run uses memory; the numbers it ends with are the same up to rounding, where `state` alone differs
    on one device the same bits."""

    checkpointing: bool = False
    """Keep no activations inside layers: the backward pass computes them a second time."""
    state: str = "device"
    """One of `PLACES`."""

    def __str__(self) -> str:
        place = {"device": "with the model", "host": "in main memory", "disk": "in files"}[self.state]
        return f"state {place}, activations {'computed twice' if self.checkpointing else 'kept'}"


def layouts(device: str) -> tuple[Layout, ...]:
    """Every layout that means something on a device (`cpu`, `cuda`), the fastest first."""
    places = [place for place in PLACES if device != "cpu" or place != "host"]
    return tuple(Layout(checkpointing=twice, state=place) for place in places for twice in (False, True))


def within(budget: int, choices: Sequence[Layout], needed: Callable[[Layout], int]) -> Layout:
    """The first layout whose peak is within a budget.

    Args:
        budget: bytes.
        needed: layout -> bytes at its fullest moment.

    Raises:
        MachineFault: if none is, with the least that would do.
    """
    sizes = {layout: needed(layout) for layout in choices}
    for layout, size in sizes.items():
        if size <= budget:
            return layout
    layout, least = min(sizes.items(), key=lambda pair: pair[1])
    raise MachineFault(
        f"this needs at least {gigabytes(least)} ({layout}), the budget is {gigabytes(budget)}",
        f"give --memory {math.ceil(least / 1e6)}MB or a smaller batch; --plan without --memory says what takes it",
    )


def gigabytes(size: int) -> str:
    """GB of 10^9 bytes; more digits of small ones, so that what a micro model takes says something."""
    if 0 < size < 1e5:
        return f"{size:,} bytes"
    return f"{size / 1e9:,.{2 if size >= 1e8 or not size else 4}f} GB"


def parse_size(text: str) -> int:
    """Bytes of a size such as `20GiB`, `1.5 GB` or `4000000`.

    Raises:
        UsageError: if it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None or not float(found[1]):
        raise UsageError(f"'{text}' is no size", "write a number with a unit, such as 20GiB or 500MB")
    return int(float(found[1]) * unit)


def give_back() -> None:
    """Have glibc give free memory between what is in use back to the system; elsewhere nothing happens.

    Small objects that stay, made in turn with large ones that go, are put where the large ones were: the next large
    ones find no room there, and the process grows with every turn.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Store:
    """Makes the tensors of a run's state in one place.

    Args:
        place: one of `PLACES`.
        folder: where files are made, for `disk`; they have no name there and go away with their tensors.
    """

    def __init__(self, place: str = "device", folder: Path | None = None) -> None:
        if place not in PLACES:
            raise unknown("place", place, PLACES)
        self.place, self.folder = place, folder

    def zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """Zeros on `device`, in main memory (pinned where there is a GPU), or mapped from a file.

        Raises:
            MachineFault: if the disk is full or cannot be written: found here, not in the midst of the run.
        """
        import torch

        if self.place == "device":
            return torch.zeros(tuple(shape), dtype=dtype, device=device)
        if self.place == "host":
            return torch.zeros(tuple(shape), dtype=dtype, pin_memory=torch.cuda.is_available())
        return self._mapped(math.prod(shape), dtype).view(tuple(shape))

    def _mapped(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        import torch

        if not count:
            return torch.zeros(0, dtype=dtype)
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".state-") as file:
                if hasattr(os, "posix_fallocate"):  # not on macOS, where a full disk is met later
                    os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
                else:
                    file.truncate(count * dtype.itemsize)
                return torch.from_file(file.name, shared=True, size=count, dtype=dtype)
        except OSError as error:
            reason = error.strerror or str(error)
            raise MachineFault(
                f"no room for {count * dtype.itemsize:,} bytes of state in files: {reason}", "free some disk space"
            ) from error
