"""Running sums per parameter, in float32 or better: on the parameter's device, in main memory or in files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from mmsurgery.memory import Store

if TYPE_CHECKING:
    import numpy as np

PIECE = 1 << 24
"""Elements that are brought from a GPU to main memory at a time; there are two buffers of them."""


class Sums:
    """Name -> sum of (squared) gradients in the parameter's shape, float64 for float64 parameters,
    else float32; made when a parameter gets its first gradient. No per-batch temporary of a
    parameter's size is allocated: conversions go through one reused scratch.

    Args:
        names: parameter -> canonical name.
        store: where the sums are kept; on the parameter's device where None.
    """

    def __init__(self, names: Mapping[torch.nn.Parameter, str], store: Store | None = None) -> None:
        self.names, self.store = names, store or Store()
        self.totals: dict[str, torch.Tensor] = {}
        self._buffers: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}
        self._pinned: list[torch.Tensor] = []

    def total(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The running sum of a parameter, zeros at first; not always on the parameter's device."""
        name = self.names[parameter]
        if name not in self.totals:
            self.totals[name] = self.store.zeros(parameter.shape, sum_dtype(parameter), parameter.device)
        return self.totals[name]

    @contextlib.contextmanager
    def adding(self, parameter: torch.nn.Parameter) -> Iterator[torch.Tensor]:
        """What takes a batch's addends on the parameter's device: the sum itself, or a scratch that is added to it."""
        total = self.total(parameter)
        if not _elsewhere(total, parameter):
            yield total
            return
        addend = self.scratch(parameter, total.dtype, "addend").zero_()
        yield addend
        self._bring(addend.view(-1), total.view(-1))

    def scratch(self, like: torch.Tensor, dtype: torch.dtype, use: str = "sum") -> torch.Tensor:
        """Uninitialised memory in the shape of a parameter or of rows of it, shared by all calls of the same `use`."""
        key = (use, like.device, dtype)
        if key not in self._buffers or self._buffers[key].numel() < like.numel():
            self._buffers[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return self._buffers[key][: like.numel()].view(like.shape)

    def add(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        with self.adding(parameter) as total:
            total.add_(gradient)

    def add_square(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        """Add the squared gradient; a low-precision gradient is converted first, since squares of
        16-bit numbers underflow. (A GPU's kernels convert what they read: the same numbers, no scratch.)"""
        with self.adding(parameter) as total:
            if gradient.dtype != total.dtype and not gradient.is_cuda:
                gradient = self.scratch(parameter, total.dtype).copy_(gradient)
            total.addcmul_(gradient, gradient)

    def _bring(self, addend: torch.Tensor, total: torch.Tensor) -> None:
        """Add numbers on a GPU to a sum in main memory: one piece is on its way while the one before it is added."""
        if not self._pinned:
            self._pinned = [torch.empty(PIECE, dtype=total.dtype, pin_memory=True) for _ in range(2)]
        begun: list[tuple[slice, torch.Tensor, torch.cuda.Event]] = []
        for start in range(0, len(addend), PIECE):
            piece = slice(start, min(start + PIECE, len(addend)))
            buffer = self._pinned[start // PIECE % 2][: piece.stop - start]
            buffer.copy_(addend[piece], non_blocking=True)
            begun.append((piece, buffer, torch.cuda.current_stream().record_event()))
            if len(begun) == 2:
                _finish(*begun.pop(0), total)
        for each in begun:
            _finish(*each, total)

    def not_finite(self) -> list[str]:
        """Names whose sum holds NaN or infinity."""
        return [name for name, total in self.totals.items() if not all(map(math.isfinite, _ends(total)))]

    def any(self) -> bool:
        """Whether any sum holds anything but zeros."""
        return any(any(_ends(total)) for total in self.totals.values())

    def arrays(self) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[Any]]]]:
        """Names in sorted order with their sums in main memory."""
        for name in sorted(self.totals):
            yield name, self.totals[name].cpu().numpy()


def _elsewhere(total: torch.Tensor, parameter: torch.Tensor) -> bool:
    return total.device != parameter.device


def _finish(piece: slice, buffer: torch.Tensor, arrived: torch.cuda.Event, total: torch.Tensor) -> None:
    arrived.synchronize()
    total[piece].add_(buffer)


def _ends(values: torch.Tensor) -> tuple[float, float]:
    """The least and the greatest; NaN where there is one, 0 where there is nothing. (A tenth of the time that
    `Tensor.any` of floats takes.)"""
    if not values.numel():
        return 0.0, 0.0
    least, greatest = values.aminmax()
    return least.item(), greatest.item()


def sum_dtype(parameter: torch.Tensor) -> torch.dtype:
    """What sums over a parameter's gradients are kept in."""
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32
