"""Running sums per parameter, in float32 or better, on the parameter's device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np


class Sums:
    """Name -> sum of (squared) gradients in the parameter's shape, float64 for float64 parameters,
    else float32; made when a parameter gets its first gradient. No per-batch temporary of a
    parameter's size is allocated: conversions go through one reused scratch.

    Args:
        names: parameter -> canonical name.
    """

    def __init__(self, names: Mapping[torch.nn.Parameter, str]) -> None:
        self.names = names
        self.totals: dict[str, torch.Tensor] = {}
        self._buffers: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    def total(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The running sum of a parameter, zeros at first."""
        name = self.names[parameter]
        if name not in self.totals:
            self.totals[name] = torch.zeros_like(parameter, dtype=sum_dtype(parameter), requires_grad=False)
        return self.totals[name]

    def scratch(self, parameter: torch.nn.Parameter, dtype: torch.dtype, use: str = "sum") -> torch.Tensor:
        """Uninitialised memory in the parameter's shape, shared by all calls of the same `use`."""
        key = (use, parameter.device, dtype)
        if key not in self._buffers or self._buffers[key].numel() < parameter.numel():
            self._buffers[key] = torch.empty(parameter.numel(), dtype=dtype, device=parameter.device)
        return self._buffers[key][: parameter.numel()].view(parameter.shape)

    def add(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        self.total(parameter).add_(gradient)

    def add_square(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        """Add the squared gradient; a low-precision gradient is converted first, since squares of
        16-bit numbers underflow. (A GPU's kernels convert what they read: the same numbers, no scratch.)"""
        total = self.total(parameter)
        if gradient.dtype != total.dtype and not gradient.is_cuda:
            gradient = self.scratch(parameter, total.dtype).copy_(gradient)
        total.addcmul_(gradient, gradient)

    def not_finite(self) -> list[str]:
        """Names whose sum holds NaN or infinity."""
        return [name for name, total in self.totals.items() if not bool(torch.isfinite(total).all())]

    def arrays(self) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[Any]]]]:
        """Names in sorted order with their sums on the host."""
        for name in sorted(self.totals):
            yield name, self.totals[name].cpu().numpy()


def sum_dtype(parameter: torch.Tensor) -> torch.dtype:
    """What sums over a parameter's gradients are kept in."""
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32
