"""Negative Preference Optimisation (Eq. 19): a bounded ascent, measured against a reference model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsurgery.methods.base import Method, Term

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Step


def npo_loss(current: torch.Tensor, reference: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Eq. 19: (2 / beta) * mean over samples of log(1 + (p / p_ref)^beta), p of the whole answer.

    Args:
        current, reference: `[B]`, log-probability of each answer in nats, summed over its tokens.

    Returns:
        Scalar; 2 ln 2 / beta where current equals reference, 0 as the answers become impossible.
    """
    import torch

    return 2 / beta * torch.nn.functional.softplus(beta * (current - reference)).mean()


@dataclass(frozen=True)
class NPO(Method):
    name = "npo"
    title = "Negative Preference Optimisation"
    equation = "Eq. 19"
    mean_of_samples = True
    uses_retain = False
    references = frozenset({"forget_logprob"})
    positive = frozenset({"beta"})

    beta: float = 0.4

    def terms(self, step: Step) -> Iterator[Term]:
        if step.forget is not None:
            current = step.forget.answers().sequence_logprob()
            yield Term("forget", npo_loss(current, step.forget.reference_logprob(), beta=self.beta))
