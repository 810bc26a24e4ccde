"""What a measurement depends on, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def settings(part: str, estimator: str, batch_size: int, threads: int) -> dict[str, Any]:
    """What a saliency map's sums depend on beside model and data; the batch size only for `batch`,
    since the other estimators are the same at any."""
    return {
        "part": part,
        "estimator": estimator,
        "batch_size": batch_size if estimator == "batch" else None,
        "threads": threads,
    }


@dataclass(frozen=True)
class State:
    """How far a measurement is, beside its sums."""

    samples: int = 0
    """Samples done, in their order."""
    supervised_tokens: int = 0
    path: str = "hooks"
