"""One unlearning step's gradient: the method's terms, one graph at a time, the ascent masked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Sample
from mmsurgery.errors import InternalError, MmsurgeryError, UnusableData, UsageError
from mmsurgery.methods.base import Method, Term
from mmsurgery.methods.registry import STOPS, said
from mmsurgery.methods.step import Passage, References, Step
from mmsurgery.ranks import ALONE, Ranks
from mmsurgery.unlearn.plan import StepPlan
from mmsurgery.unlearn.shares import Share

if TYPE_CHECKING:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.masked import Update

VANISHED = 1e-20
"""Forget loss in nats below which its gradient may be zero in float32: NPO's, of an answer that is all but
impossible."""


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
    beside: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """What the method sees besides, by name (see `Method.beside`)."""
    seed: int = 0
    witness: Mask | None = None
    """In scope `forget`, where the saved weights cannot show what the forget terms reached: the mask that the first
    forget gradient is held against, bit by bit, apart from `update`'s own bookkeeping."""
    ranks: Ranks = ALONE
    """Those that the model is cut up among: each runs its share of every batch, the gradient that is left is the mean
    over ranks, and losses are those of the whole batch."""
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __call__(self, number: int) -> dict[str, float]:
        """Losses by kind, unweighted, nats.

        Raises:
            UsageError: if the method yields no term, or a forget term after a retain term.
            UnusableData: if no trainable weight influences a term, or the forget terms none inside the mask.
            InternalError: if the forget terms reach weights outside the mask.
        """
        planned = self.plan[number]
        step = Step(
            number,
            self.loaded.model,
            self._passage(self.forget, planned.forget),
            self._passage(self.retain, planned.retain),
            {
                name: passage
                for name, places in planned.beside.items()
                if (passage := self._passage(self.beside[name], places)) is not None
            },
            self.seed,
        )
        if not planned.retain:
            self.update.hold()
        losses: dict[str, float] = {}
        for term in self._terms(step):
            if term.kind == "forget" and "retain" in losses:
                raise UsageError(f"method {self.method.name} yields a forget term after a retain term", "swap them")
            if term.kind == "retain" and "retain" not in losses:
                self._end_of_ascent(number, losses)
            losses[term.kind] = losses.get(term.kind, 0.0) + self._backward(term, number)
        missing = {"forget"} if planned.forget else {"retain"}
        if missing - losses.keys():
            raise UsageError(
                f"method {self.method.name} yields no {min(missing)} term for step {number + 1}",
                "have the method yield that term in every step",
            )
        if "retain" not in losses:
            self._end_of_ascent(number, losses)
        return losses

    def _terms(self, step: Step) -> Iterator[Term]:
        """The method's terms. What someone's own code gets wrong is said to be theirs.

        Raises:
            UsageError: if it raises something, or yields what is no term.
        """
        import torch

        method = self.method
        try:
            for term in method.terms(step):
                loss: Any = getattr(term, "loss", None)
                scalar = isinstance(loss, torch.Tensor) and loss.shape in ((), (1,)) and loss.is_floating_point()
                if not (isinstance(term, Term) and term.kind in ("forget", "retain") and scalar):
                    raise TypeError(
                        f"yields {str(term)[:80]}, should be Term('forget' or 'retain', a loss of one number)"
                    )
                yield term
        except (MmsurgeryError, MemoryError, torch.OutOfMemoryError, *STOPS):
            raise
        except BaseException as error:
            own = method.code is None or isinstance(error, GeneratorExit) or "can't allocate memory" in str(error)
            if own:
                raise
            path = Path(inspect.getfile(type(method)))
            raise UsageError(f"method {method.name} of {path} fails: {said(error, path)}", "mend it") from error

    def _end_of_ascent(self, number: int, losses: dict[str, float]) -> None:
        """Mask the forget terms' gradient, and look whether it is where it should be."""
        self.update.mask_forget_gradient()
        if "forget" not in losses:
            return
        if abs(losses["forget"]) > VANISHED and not self.update.reached():
            raise UnusableData(
                f"step {number + 1}: the forget loss has no gradient inside the mask (samples {self.ids(number)})",
                "mask or train other modules",
            )
        if self.witness is not None:
            _check_outside(self.witness, self.update, number)
            self.witness = None

    def _backward(self, term: Term, number: int) -> float:
        if not term.loss.requires_grad:
            raise UnusableData(
                f"step {number + 1}: no trainable weight influences the {term.kind} loss (samples {self.ids(number)})",
                "train other modules",
            )
        planned = self.plan[number]
        share = Share.of(planned.forget if term.kind == "forget" else planned.retain, self.ranks)
        weighted = term.loss * self.forget_weight if term.kind == "forget" else term.loss
        if self.ranks.count > 1:
            weighted = weighted * (self.ranks.count * share.weight)
        weighted.backward()  # type: ignore[no-untyped-call]
        return sum(self.ranks.exchange(share.weight * float(term.loss.detach())))

    def ids(self, number: int) -> str:
        """Ids of a step's samples."""
        planned = self.plan[number]
        samples = [self.forget[i] for i in planned.forget] + [self.retain[i] for i in planned.retain]
        samples += [self.beside[name][place] for name, places in planned.beside.items() for place in places]
        return ", ".join(sample.id for sample in samples)

    def _passage(self, samples: Sequence[Sample], places: tuple[int, ...]) -> Passage | None:
        if not places:
            return None
        places = Share.of(places, self.ranks).places
        chosen = [samples[place] for place in places]
        device = next(self.loaded.model.parameters()).device
        batch = self.loaded.backbone.collate(self.loaded.processor, chosen, cache=self._cache)
        batch = {name: value.to(device) for name, value in batch.items()}
        return Passage(self.loaded.model, batch, chosen, places, self.references)


def _check_outside(mask: Mask, update: Update, number: int) -> None:
    """Recompute with NumPy, from the mask's own bits, that the forget gradient is zero outside the mask."""
    for name, parameter in update.trainable.items():
        if parameter.grad is None:
            continue
        stray = int(((parameter.grad.detach().cpu().numpy() != 0) & ~mask[name][update.rows(name)]).sum())
        if stray:
            raise InternalError(
                f"step {number + 1}: the forget term reaches {stray:,} weights of {name} outside the mask; "
                "nothing is kept"
            )
