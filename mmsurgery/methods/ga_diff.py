"""Gradient Difference (Eq. 16, also Eq. 2): ascend on the forget answers, descend on the retain answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmsurgery.methods.base import Method, Term
from mmsurgery.methods.ga import ga_loss

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Step


def retain_loss(nll: torch.Tensor) -> torch.Tensor:
    """Eq. 14: mean over samples of the mean answer NLL.

    Args:
        nll: `[B]`, nats, mean over each sample's answer tokens.

    Returns:
        Scalar, nats.
    """
    return nll.mean()


class GADiff(Method):
    name = "ga_diff"
    title = "Gradient Difference"
    equation = "Eq. 16"
    mean_of_samples = True

    def terms(self, step: Step) -> Iterator[Term]:
        if step.forget is not None:
            yield Term("forget", ga_loss(step.forget.answers().nll()))
        if step.retain is not None:
            yield Term("retain", retain_loss(step.retain.answers().nll()))
