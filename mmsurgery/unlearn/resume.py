"""What a training run goes through, as its snapshots and its record keep it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What a run has gone through so far; plain JSON."""

    losses: list[dict[str, float]] = field(default_factory=list)
    """Per step: loss of each kind, unweighted, and `norm`, the gradient's norm after masking, before clipping."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """What `--eval-every` found: `step` (steps done), `columns` (accuracy by column) and `correct` (by column,
    in the items' order, packed bits of which were right, bit order little, as hex)."""

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)
