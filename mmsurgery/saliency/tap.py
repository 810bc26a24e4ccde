"""Where the gradient of a module's output meets what the module was called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmsurgery.saliency.modules import NotUnderstood

Arrive = Callable[[tuple[Any, ...], torch.Tensor], None]
"""Takes what the module was called with, and the gradient of its output."""


def tapped(output: torch.Tensor, inputs: tuple[Any, ...], arrive: Arrive, name: str) -> torch.Tensor:
    """The output of a module, whose gradient calls `arrive` on its way back.

    Inputs are kept as autograd keeps its own: until they are used. Where activations are checkpointed they are
    not kept at all, and those that come are computed again.

    Args:
        name: of the module.

    Raises (in the backward pass):
        NotUnderstood: if an input was changed in place meanwhile.
    """
    first = not output.requires_grad  # the first node of the graph
    source = output.detach().requires_grad_(True) if first else output
    tapped: torch.Tensor = _Tap.apply(source, _Call(inputs, arrive, name, first))  # type: ignore[no-untyped-call]
    return tapped


class _Call:
    """One call of a module; its tensors are handed over when they are saved."""

    def __init__(self, inputs: tuple[Any, ...], arrive: Arrive, name: str, first: bool) -> None:
        self.tensors = [value.detach() for value in inputs if isinstance(value, torch.Tensor)]
        self.others = [None if isinstance(value, torch.Tensor) else (value,) for value in inputs]
        self.versions = [value._version for value in self.tensors]
        self.arrive, self.name, self.first = arrive, name, first

    def inputs(self, saved: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        tensors = iter(saved)
        return tuple(next(tensors) if other is None else other[0] for other in self.others)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, call: _Call) -> torch.Tensor:
        ctx.call = call
        ctx.save_for_backward(*call.tensors)
        call.tensors = []
        # no view of the output to autograd, so that it may be changed in place as the output itself
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        call: _Call = ctx.call
        try:
            saved = ctx.saved_tensors
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise NotUnderstood(f"the input of {call.name} is changed in place") from error
        # autograd does not look at those that are computed again
        if [value._version for value in saved] != call.versions:
            raise NotUnderstood(f"the input of {call.name} is changed in place")
        call.arrive(call.inputs(saved), gradient)
        return None if call.first else gradient, None
