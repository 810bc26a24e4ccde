"""What somebody would do to bring a forgotten answer back, done in a step so that it is learnt against.

One step of the sign of the gradient each (Goodfellow et al., arXiv 1412.6572), in pixels or in weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsurgery.methods.step import Passage

PIXELS = "pixel_values"


def picture_moved(passage: Passage, size: float) -> Passage:
    """The passage with its pictures moved by one step that makes its answers likelier.

    Args:
        size: of the step, in units of the processor's normalised pixel values.
    """
    import torch

    pixels = passage.batch[PIXELS].detach().clone().requires_grad_()
    moved = dataclasses.replace(passage, batch={**passage.batch, PIXELS: pixels})
    (slope,) = torch.autograd.grad(moved.answers().nll().mean(), pixels)
    return dataclasses.replace(passage, batch={**passage.batch, PIXELS: pixels.detach() - size * slope.sign()})


@contextlib.contextmanager
def weights_relearning(model: Any, passage: Passage, size: float) -> Iterator[None]:
    """Inside, every weight that is trained has made one step that makes the passage's answers likelier; after, each has
    the bits that it had. Gradients that were accumulated stay.

    Args:
        size: of the step of each weight.
    """
    import torch

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    slopes = torch.autograd.grad(passage.answers().nll().mean(), weights, allow_unused=True)
    moved = [(weight, weight.detach().clone(), slope) for weight, slope in zip(weights, slopes, strict=True)]
    with torch.no_grad():
        for weight, _, slope in moved:
            if slope is not None:
                weight.sub_(slope.sign(), alpha=size)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before, slope in moved:
                if slope is not None:
                    weight.copy_(before)
