"""How much of a weight's gradient is made at a time."""

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
