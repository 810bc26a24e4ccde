"""KL Minimisation (Eq. 17 and 18): ascend on the forget answers, stay near the vanilla model on the retain answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmsurgery.methods.base import Method, Term
from mmsurgery.methods.ga import ga_loss

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Step


def token_kl(current: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(theta0 || theta) at each answer token: the direction of the benchmark's code, theta0 = reference.

    Args:
        current, reference: `[N, V]`, log-probabilities in nats.

    Returns:
        `[N]`, nats. Its mean over each sample's answer tokens, then over the retain samples, is Eq. 17
        (which prints the forget set's size and another direction; the text says retain set).
    """
    return (reference.exp() * (reference - current)).sum(dim=-1)


class KLMin(Method):
    """Weights 1 and 1 as Eq. 18 prints; the published code adds a cross-entropy on the retain set, this does not."""

    name = "kl_min"
    title = "KL Minimisation"
    equation = "Eq. 17, 18"
    mean_of_samples = True
    references = frozenset({"retain_distribution"})

    def terms(self, step: Step) -> Iterator[Term]:
        if step.forget is not None:
            yield Term("forget", ga_loss(step.forget.answers().nll()))
        if step.retain is not None:
            answers = step.retain.answers()
            divergences = token_kl(answers.log_probabilities(), step.retain.reference_log_probabilities())
            yield Term("retain", answers.per_sample_mean(divergences).mean())
