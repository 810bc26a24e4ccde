"""One unlearning step's gradient: the method's terms, one graph at a time, the ascent masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Sample
from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.methods.base import Method, Term
from mmsurgery.methods.step import Passage, References, Step
from mmsurgery.unlearn.plan import StepPlan

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.masked import Update


@dataclass
class Unlearning:
    """Calling it with a step's number leaves the step's masked gradient in the parameters.

    The gradient is m * weight * grad(forget terms) + grad(retain terms) (Eq. 3).
    """

    loaded: Loaded
    method: Method
    update: Update
    forget: Sequence[Sample]
    retain: Sequence[Sample]
    plan: Sequence[StepPlan]
    references: References
    forget_weight: float = 1.0
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __call__(self, number: int) -> dict[str, float]:
        """Losses by kind, unweighted, nats.

        Raises:
            UsageError: if the method yields no term, or a forget term after a retain term.
            UnusableData: if no trainable weight influences a term.
        """
        planned = self.plan[number]
        step = Step(
            number,
            self.loaded.model,
            self._passage(self.forget, planned.forget),
            self._passage(self.retain, planned.retain),
        )
        if not planned.retain:
            self.update.hold()
        losses: dict[str, float] = {}
        for term in self.method.terms(step):
            if term.kind == "forget" and "retain" in losses:
                raise UsageError(f"method {self.method.name} yields a forget term after a retain term", "swap them")
            if term.kind == "retain" and "retain" not in losses:
                self.update.mask_forget_gradient()
            losses[term.kind] = losses.get(term.kind, 0.0) + self._backward(term, number)
        missing = {"forget"} if planned.forget else {"retain"}
        if missing - losses.keys():
            raise UsageError(f"method {self.method.name} yields no {min(missing)} term for step {number + 1}")
        if "retain" not in losses:
            self.update.mask_forget_gradient()
        return losses

    def _backward(self, term: Term, number: int) -> float:
        if not term.loss.requires_grad:
            raise UnusableData(
                f"step {number + 1}: no trainable weight influences the {term.kind} loss (samples {self.ids(number)})",
                "train other modules",
            )
        weighted = term.loss * self.forget_weight if term.kind == "forget" else term.loss
        weighted.backward()  # type: ignore[no-untyped-call]
        return float(term.loss.detach())

    def ids(self, number: int) -> str:
        """Ids of a step's samples."""
        planned = self.plan[number]
        samples = [self.forget[i] for i in planned.forget] + [self.retain[i] for i in planned.retain]
        return ", ".join(sample.id for sample in samples)

    def _passage(self, samples: Sequence[Sample], places: tuple[int, ...]) -> Passage | None:
        if not places:
            return None
        chosen = [samples[place] for place in places]
        device = next(iter(self.update.trainable.values())).device
        batch = self.loaded.backbone.collate(self.loaded.processor, chosen, cache=self._cache)
        batch = {name: value.to(device) for name, value in batch.items()}
        return Passage(self.loaded.model, batch, chosen, places, self.references)
