"""A plan: samples, passes, peak memory, disk and time of a verb.

Memory is what tensors and arrays take at the fullest moment, term by term, beside the interpreter and its
libraries (about 0.5 GB). Terms are exact sums over the model's shapes, but for `ACTIVATIONS`, `CACHE` and
`SAMPLES`, which are estimates. They are of one memory: the GPU's where one is visible, else main memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

WEIGHTS = "weights"
GRADIENTS = "gradients"
ACCUMULATORS = "accumulators"
MOMENTS = "moments"
MASTERS = "masters"
ADAPTERS = "adapters"
BITS = "mask bits"
PLACES = "places of selected weights"
HELD = "held weights"
REFERENCE = "reference model"
OUTPUTS = "reference outputs"
ATTACK = "weights and gradients of a relearning step"
TEMPORARY = "largest temporary"
PICTURES = "encoded pictures"
SAMPLES = "pictures as files (estimate)"
ACTIVATIONS = "activations (estimate)"
CACHE = "keys and values (estimate)"


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The model that a verb runs."""

    name: str
    parameters: int
    dtype: str
    """safetensors code of most of its weights as they are stored."""
    bytes: int
    """Of its weights as they are stored."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Forward and backward passes, counted in samples."""

    forward: int
    backward: int
    tokens: int | None = None
    """Of the forward passes, pictures' included; scaled up from a few samples. None where it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a verb would do and need."""

    verb: str
    model: ModelSize
    samples: Mapping[str, int]
    """Data part, column or set -> samples."""
    passes: Passes
    memory: Mapping[str, int]
    """Term -> bytes, at the fullest moment."""
    disk: Mapping[str, int]
    """What is written -> bytes, at most; snapshots only in runs longer than half a minute."""
    disk_free: int
    """Bytes that are free where it would be written."""
    seconds: float | None
    """Wall time of the command on this machine, from where the interpreter and torch are imported to its end: getting
    ready, libraries that are loaded on the way, the model, every unit, snapshots, writing and checking. Scaled up from
    a few units that were run; as if nothing of it was there or interrupted. None where that was not possible, see
    `notes`, which also say what it is made of."""
    notes: tuple[str, ...]
    layouts: Mapping[str, int] = field(default_factory=dict)
    """Layout in words (see `memory.Layout`) -> bytes at the fullest moment, state that lies elsewhere left out; of
    verbs whose memory can be laid out otherwise. The same results in all of them."""

    @property
    def memory_total(self) -> int:
        return sum(self.memory.values())

    @property
    def disk_total(self) -> int:
        return sum(self.disk.values())


def fullest(moments: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, int], list[str]]:
    """The terms of the moment that takes most memory, empty ones left out, and a note where there are several.

    Args:
        moments: what is done then -> its terms.
    """
    chosen = max(moments, key=lambda moment: sum(moments[moment].values()))
    terms = {term: size for term, size in moments[chosen].items() if size}
    return terms, [f"memory is fullest while {chosen}"] if len(moments) > 1 else []


def free_below(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
