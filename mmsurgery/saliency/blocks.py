"""How much of a weight's gradient is made at a time, and when that is worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements that are made at a time, for each sample, so that no scratch is as large as a vocabulary's weight. On a CPU
they stay in the cache until they are squared and added."""
ROWS = 512
"""Rows that are made at least: fewer would be slower than what the cache saves."""


def block_rows(shape: Sequence[int], device: str) -> int:
    """Rows of a weight of that shape that are done at a time, on a device of that type."""
    return max(ROWS, BLOCK.get(device, BLOCK["cuda"]) // max(math.prod(shape[1:]), 1))


LARGE = 0.1
"""Share of all weights in one tensor from which its whole gradient is worth avoiding."""


def in_blocks(estimator: str, sizes: Sequence[int]) -> bool:
    """Whether an estimator begins with hooks, which never hold the whole gradient of a weight: `sample` always, `batch`
    where one tensor is a large part of the model, as of small models with a large vocabulary (elsewhere plain
    backward passes are a tenth faster), `dataset` never.

    Args:
        sizes: elements of every parameter.
    """
    return estimator == "sample" or (estimator == "batch" and max(sizes, default=0) > LARGE * sum(sizes))
