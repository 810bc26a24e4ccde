"""What of a model an unlearning run moves, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsurgery.plans import plan as terms
from mmsurgery.plans.sizes import FLOAT32, Sizes
from mmsurgery.unlearn.request import Request

ADAMW = 2
"""Moments a weight."""


@dataclass(frozen=True)
class Trained:
    """What of a model moves, and how it is masked."""

    sizes: Sizes
    moved: int
    """Numbers that the optimizer moves: weights, or those of adapters."""
    masked: Sequence[str]
    """Parameters whose mask bits are kept: those of which the mask leaves something out."""
    largest: int
    """Weights of the largest tensor that is made anew in a step."""
    strict: bool
    adapters: bool

    @classmethod
    def of(cls, request: Request, sizes: Sizes, selection: Mapping[str, int] | None, targets: Sequence[str]) -> Trained:
        counts = {name: sizes.count([name]) for name in sizes.shapes}
        names = list(counts) if selection is None else list(selection)
        if selection is not None and request.strict:
            names = [name for name in names if selection[name]]
        names = list(targets) if request.lora is not None else names
        if request.lora is None:
            moved = sizes.count(names)
        else:
            moved = sum(request.lora.rank * sum(sizes.shapes[name]) for name in names)
        masked = [name for name in names if selection is not None and selection[name] < counts[name]]
        return cls(sizes, moved, masked, sizes.largest(names), request.strict, request.lora is not None)

    def terms(self, *, held: bool, kept_mask: bool) -> dict[str, int]:
        """Memory that does not depend on batches.

        weights 4, gradients 4 and moments 8 bytes a number that moves (float32); with LoRA these are the adapters',
        which take 4 bytes themselves. Mask bits: an eighth of a byte a masked weight, and of every weight once
        more for the mask as it was read. Original weights, scope `all`: 4 bytes for every weight of a masked
        tensor, selected or not. Held weights: the same in steps without retain terms of scope `forget`.
        Temporary: the gradient of one tensor before it is added; with LoRA the product of the adapters, with
        a mask that and the weight it is merged into.

        Args:
            held: whether there are steps without retain terms.
        """
        masked = FLOAT32 * self.sizes.count(self.masked)
        full = not self.adapters
        return {
            terms.WEIGHTS: FLOAT32 * self.sizes.count(),
            terms.ADAPTERS: 0 if full else FLOAT32 * self.moved,
            terms.GRADIENTS: FLOAT32 * self.moved,
            terms.MOMENTS: FLOAT32 * ADAMW * self.moved,
            terms.BITS: -(-self.sizes.count(self.masked) // 8) + (-(-self.sizes.count() // 8) if kept_mask else 0),
            terms.ORIGINAL: masked if full and self.strict else 0,
            terms.HELD: masked if full and held and not self.strict else 0,
            terms.TEMPORARY: FLOAT32 * self.largest * (2 if self.adapters and self.masked else 1),
        }
