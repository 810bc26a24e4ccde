"""Float32 numbers that the optimizer moves in the place of weights: masters.

A weight has one where the model computes in less than float32, where the optimizer's state lies elsewhere than the
model, and where a mask lets only some of its entries move: then the master holds these alone, and so do its gradient
and its moments. A weight's gradient is taken from it as soon as a backward pass has made it and adds up in float32
beside the master, so that of all weights' gradients one is in memory at a time.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.memory import Store

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 18
"""Weights whose places are found at a time, and places that are widened at a time: what that takes stays in the
processor's cache. A multiple of 8."""
GPU_BLOCK = 1 << 24
"""The same on a GPU, where starting a kernel takes longer than a small block."""


class Selection:
    """Which entries of one tensor a mask selects, by their places in the flat tensor.

    Places take four bytes each, which is what `index_select` reads fastest (measured beside packed bits, 8-byte places,
    `take`, `put_` and NumPy's forms at densities from 0.1 to 0.9); `scatter_` wants eight, which exist block by block.

    Args:
        bits: packed, uint8 `[ceil(numel / 8)]`, bit order little.
        numel: weights of the tensor.
        device: of the tensor.
    """

    def __init__(self, bits: np.ndarray[Any, Any], numel: int, device: torch.device) -> None:
        import torch

        wide = np.int32 if numel <= np.iinfo(np.int32).max else np.int64
        found = [
            (start + np.flatnonzero(np.unpackbits(bits[start // 8 : (start + BLOCK) // 8], bitorder="little"))).astype(
                wide
            )
            for start in range(0, numel, BLOCK)
        ]
        places = np.concatenate(found) if found else np.zeros(0, wide)
        self.places = torch.from_numpy(places).to(device)
        """Ascending, `[k]`."""

    def __len__(self) -> int:
        return len(self.places)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The selected entries `[k]` of a tensor."""
        return values.detach().reshape(-1).index_select(0, self.places)

    def scatter(self, chosen: torch.Tensor, values: torch.Tensor) -> None:
        """Write `[k]` entries of the tensor's dtype to their places in a contiguous tensor, in place."""
        flat = values.detach().view(-1)
        size = BLOCK if flat.device.type == "cpu" else GPU_BLOCK
        with _any_order(flat):
            for start in range(0, len(self), size):
                part = slice(start, start + size)
                flat.scatter_(0, self.places[part].long(), chosen[part])


@contextlib.contextmanager
def _any_order(values: torch.Tensor) -> Iterator[None]:
    """On a GPU, scatter without sorting first: deterministic kernels sort places because some could be the same, and
    a mask's are all different."""
    import torch

    if values.device.type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Master:
    """What the optimizer moves for a weight.

    Args:
        weight: contiguous, in the dtype that the model computes in; from now on its gradient is taken from it. One
            that has none of its own, rows of a weight that is cut up, is to be brought to `take`.
        values: float32, in the weight's shape, on any device: what the master begins with.
        store: where it is made.
        selection: which entries it holds; all where None.

    Attributes:
        parameter: float32, in the weight's shape, or `[k]` with a selection; in main memory where `store` says so.
    """

    def __init__(
        self,
        weight: torch.nn.Parameter,
        values: torch.Tensor,
        store: Store,
        selection: Selection | None = None,
    ) -> None:
        import torch

        self.weight, self.selection = weight, selection
        chosen = values.detach() if selection is None else selection.gather(values.to(weight.device))
        made = store.zeros(chosen.shape, torch.float32, weight.device).copy_(chosen)
        self.parameter = torch.nn.Parameter(made)
        self._buffer: torch.Tensor | None = None
        if made.device != weight.device:  # pinned once: to be given new memory in every step would take longer
            self._buffer = Store("host").zeros(chosen.shape, torch.float32, made.device)
        if weight.requires_grad:
            me = weakref.ref(self)  # a weight that holds its master would never leave memory, nor would the model

            def taken(weight: torch.Tensor) -> None:
                if (master := me()) is not None:
                    master.take(weight)

            weight.register_post_accumulate_grad_hook(taken)  # type: ignore[no-untyped-call]

    def take(self, weight: torch.Tensor) -> None:
        """Move the weight's gradient, which a backward pass has made, beside the master."""
        gradient, weight.grad = weight.grad, None
        if gradient is None:
            return
        chosen = gradient if self.selection is None else self.selection.gather(gradient)
        if self.parameter.grad is not None:
            self.parameter.grad.add_(chosen.to(self.parameter.device))
        elif self._buffer is not None:
            self.parameter.grad = self._buffer.copy_(chosen)
        else:
            self.parameter.grad = chosen.float()

    def give(self) -> None:
        """Round the master into the weight, to nearest even; what is not selected keeps its bits."""
        chosen = self.parameter.detach()
        if self.selection is None:
            self.weight.detach().copy_(chosen)
        else:
            self.selection.scatter(chosen.to(self.weight.device, self.weight.dtype), self.weight)

    def stored(self, array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
        """A tensor as a checkpoint has it with the master in its place: what is not selected keeps its bits.

        Args:
            array: values of the start; bfloat16 as its 16-bit pattern.
            dtype: their safetensors code.
        """
        from mmsurgery.unlearn.save import as_stored

        new = as_stored(self.parameter, dtype)
        if self.selection is None:
            return new
        made = array.reshape(-1).copy()
        made[self.selection.places.cpu().numpy()] = new
        return made.reshape(array.shape)
