"""Training the weights themselves: those of some modules, in float32 or behind float32 masters."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mmsurgery.unlearn.masked import Update

if TYPE_CHECKING:
    import torch


class WeightUpdate(Update):
    """Some parameters of a model, as they are; all others are frozen.

    Args:
        model: float32 parameters; `requires_grad` of each is set here.
        names: canonical names of what is trained.
    """

    def __init__(self, model: Any, names: Collection[str]) -> None:
        self.trainable = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
            if name in names:
                self.trainable[name] = parameter


class MasterUpdate(Update):
    """Some parameters of a model that computes in bfloat16: the optimizer moves float32 masters of them.

    A step far below half a unit in the last place of a bfloat16 weight is rounded away by the weight and
    kept by its master, so that many of them move the weight (check 12 of the specification: at a learning
    rate of 1e-5 only a weight below 0.004 in magnitude would ever move without). Gradients of several
    backward passes add up in float32.

    Args:
        model: float32 parameters, made bfloat16 here; buffers stay.
        names: canonical names of what is trained.

    Attributes:
        trainable: canonical name -> master.
    """

    def __init__(self, model: Any, names: Collection[str]) -> None:
        import torch

        self.trainable = {}
        self._weights: dict[str, torch.nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
            if name in names:
                self.trainable[name] = torch.nn.Parameter(parameter.data)
                self._weights[name] = parameter
                parameter.register_post_accumulate_grad_hook(_hand_over(self.trainable[name]))
            parameter.data = parameter.data.to(torch.bfloat16)

    def restore(self) -> None:
        """Round the masters into the weights, to nearest even."""
        import torch

        with torch.no_grad():
            for name, master in self.trainable.items():
                self._weights[name].copy_(master)


def _hand_over(master: torch.nn.Parameter) -> Any:
    """What moves a weight's gradient to its master as soon as a backward pass has made it."""

    def hook(weight: torch.nn.Parameter) -> None:
        gradient, weight.grad = weight.grad, None
        if gradient is None:
            return
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)

    return hook
