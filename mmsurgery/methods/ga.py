"""Gradient Ascent (Eq. 15): make the forget answers less likely, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmsurgery.methods.base import Method, Term

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Step


def ga_loss(nll: torch.Tensor) -> torch.Tensor:
    """Eq. 15 with the sign that the paper leaves out: -mean over samples of the mean answer NLL.

    Args:
        nll: `[B]`, nats, mean over each sample's answer tokens.

    Returns:
        Scalar, nats; unbounded below.
    """
    return -nll.mean()


class GA(Method):
    name = "ga"
    title = "Gradient Ascent"
    equation = "Eq. 15"
    mean_of_samples = True
    uses_retain = False

    def terms(self, step: Step) -> Iterator[Term]:
        if step.forget is not None:
            yield Term("forget", ga_loss(step.forget.answers().nll()))
