"""Anchored ascent: a gentle ascent, beside which anchors and text are answered as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsurgery.methods.anchored import Anchored
from mmsurgery.methods.base import Budget
from mmsurgery.methods.ga import ga_loss

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Passage, Step


@dataclass(frozen=True)
class AnchoredAscent(Anchored):
    """-weight * NLL(forget) + NLL(retain) + KL(anchors) + KL(text), all at once; it has to be stopped."""

    name = "anchored_ascent"
    title = "Anchored ascent"
    budget = Budget(batch_size=12, retain_batch=16, epochs=7, rate=2 / 3)

    weight: float = 0.4
    """Of the ascent."""

    def forgetting(self, step: Step, forget: Passage) -> torch.Tensor:
        return self.weight * ga_loss(forget.answers().nll())
