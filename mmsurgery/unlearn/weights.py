"""Training the weights themselves: those of some modules, in float32 or behind float32 masters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mmsurgery.memory import Store
from mmsurgery.unlearn.masked import Update
from mmsurgery.unlearn.masters import Master


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

        self._masters: dict[str, Master] = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
            values, parameter.data = parameter.data, parameter.data.to(torch.bfloat16)
            if name in names:
                self._masters[name] = Master(parameter, values, Store())
        self.trainable = {name: master.parameter for name, master in self._masters.items()}

    def restore(self) -> None:
        """Round the masters into the weights, to nearest even."""
        for master in self._masters.values():
            master.give()
