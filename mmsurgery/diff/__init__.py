"""Which weights moved most between two models, and where they sit."""

from __future__ import annotations

from mmsurgery.diff.difference import Difference, compare, group_counts, heatmaps, relative_heatmaps
from mmsurgery.diff.run import DiffResult, diff, read_diff

__all__ = ["DiffResult", "Difference", "compare", "diff", "group_counts", "heatmaps", "read_diff", "relative_heatmaps"]
