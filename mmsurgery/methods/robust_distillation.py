"""Robust distillation: stranger distillation that is learnt on weights which have just begun to relearn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsurgery.methods.attacks import weights_relearning
from mmsurgery.methods.base import Beside, Term
from mmsurgery.methods.stranger_distillation import StrangerDistillation

if TYPE_CHECKING:
    from mmsurgery.methods.step import Step


@dataclass(frozen=True)
class RobustDistillation(StrangerDistillation):
    """As stranger distillation; the forget gradient is taken where one relearning step on another forget batch leads,
    and used where the weights are (first-order meta-learning, as Tamirisa et al., arXiv 2408.00761, do)."""

    name = "robust_distillation"
    title = "Robust distillation"

    relearning: float = 6e-3
    """Largest step of a weight; 0 for none."""
    attacked: int = 12
    """Forget samples that the step learns; 0 for no step."""

    def beside(self) -> Mapping[Beside, int]:
        return {**super().beside(), **({"forget_vqa": self.attacked} if self.relearning and self.attacked else {})}

    def terms(self, step: Step) -> Iterator[Term]:
        terms = super().terms(step)
        if step.forget is not None:
            learnt, size = step.beside.get("forget_vqa"), step.uniform("relearning", 0.0, self.relearning)
            with nullcontext() if learnt is None else weights_relearning(step.model, learnt, size):
                yield next(terms)  # what it is backpropagated through are the moved weights, too
        yield from terms
