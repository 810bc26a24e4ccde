"""One plain backward pass per batch, whose gradients are taken and freed as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from mmsurgery.backbones.protocol import Batch


class Backward:
    """Hands every parameter's gradient of a batch to `take` and frees it at once; a context manager.

    Args:
        take: gets parameter and gradient; must not keep the gradient.
        reduction: of the `[B]` losses to the scalar whose gradient is taken.
    """

    def __init__(
        self,
        names: dict[torch.nn.Parameter, str],
        take: Callable[[torch.nn.Parameter, torch.Tensor], None],
        reduction: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.names, self.take, self.reduction = names, take, reduction
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Backward:
        for parameter in self.names:
            parameter.requires_grad_(True)
            handle = parameter.register_post_accumulate_grad_hook(self._taken)  # type: ignore[no-untyped-call]
            self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _taken(self, parameter: Any) -> None:
        self.take(parameter, parameter.grad)
        parameter.grad = None

    def step(self, batch: Batch, losses: Callable[[], torch.Tensor], scale: float) -> None:
        """Measure one batch; arguments as in `Hooked.step`."""
        (self.reduction(losses()) * scale).backward()  # type: ignore[no-untyped-call]
