"""What of a model an unlearning run moves, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsurgery.memory import Layout, layouts
from mmsurgery.plans import plan as terms
from mmsurgery.plans.sizes import BF16, FLOAT32, Sizes
from mmsurgery.unlearn.request import Request

ADAMW = 2
"""Moments a weight."""
PLACE = 4
"""Bytes of a selected weight's place."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What of a model moves, and how it is masked."""

    sizes: Sizes
    width: int
    """Bytes of a weight in the dtype that the model computes in."""
    whole: int
    """Numbers that move as they lie: of tensors that are trained whole, or of adapters."""
    chosen: int
    """Selected weights of tensors of which, in scope `all`, nothing else is in the optimizer's hands."""
    masked: Sequence[str]
    """Parameters whose packed bits are kept: partly selected ones, in scope `forget` or under an adapter."""
    largest: int
    """Weights of the largest tensor that gets a gradient, or an adapter."""
    adapters: bool

    @classmethod
    def of(cls, request: Request, sizes: Sizes, selection: Mapping[str, int] | None, targets: Sequence[str]) -> Trained:
        adapters, strict = request.lora is not None, request.strict and request.lora is None
        names = list(sizes.shapes) if selection is None else list(selection)
        if selection is not None and strict:
            names = [name for name in names if selection[name]]
        names = list(targets) if adapters else names
        partly = [name for name in names if selection is not None and selection[name] < sizes.count([name])]
        compact = {name: selection[name] for name in partly} if strict and selection is not None else {}
        return cls(
            sizes=sizes,
            width=BF16 if request.low else FLOAT32,
            whole=sum(request.lora.rank * sum(sizes.shapes[name]) for name in names)
            if request.lora is not None
            else sizes.count([name for name in names if name not in compact]),
            chosen=sum(compact.values()),
            masked=[] if strict else partly,
            largest=sizes.largest(names),
            adapters=adapters,
        )

    @property
    def moved(self) -> int:
        """Numbers that the optimizer moves."""
        return self.whole + self.chosen

    def layouts(self, device: str) -> list[Layout]:
        """The layouts that mean something: the state of adapters is small, and stays with them."""
        return [layout for layout in layouts(device) if layout.state == "device" or not self.adapters]

    def terms(self, layout: Layout, device: str, *, held: bool, kept_mask: bool) -> tuple[dict[str, int], int]:
        """Memory that does not depend on batches, and how much state lies elsewhere.

        weights: 4 bytes, or 2 in bfloat16. Gradients 4 and moments 8 bytes a number that moves (float32); with LoRA
        these are the adapters', which take 4 bytes themselves. Masters: 4 bytes for every selected weight in
        scope `all`, with 4 for its place; for every number that moves in bfloat16, or with state beside a GPU. Mask
        bits: an eighth of a byte a masked weight of scope `forget`, and of every weight once more for the mask as it
        was read, which is never on a GPU. Held weights: 4 bytes for every weight of a masked tensor in steps without
        retain terms of scope `forget`. Temporary: the gradient of one tensor before it is added or taken to its
        master; with LoRA the product of the adapters, with a mask that and the weight it is merged into.

        State lies in files (masters, moments, held weights) or, beside a GPU, in main memory (gradients and bits, too).

        Args:
            device: `cpu`, or else.
            held: whether there are steps without retain terms.
        """
        beside = device != "cpu" and layout.state != "device"
        masters = self.chosen if self.width == FLOAT32 and not beside else self.moved
        state = {
            terms.MASTERS: 0 if self.adapters else FLOAT32 * masters,
            terms.MOMENTS: FLOAT32 * ADAMW * self.moved,
            terms.HELD: FLOAT32 * self.sizes.count(self.masked) if held and not self.adapters else 0,
        }
        taken = {
            terms.GRADIENTS: FLOAT32 * self.moved,
            terms.BITS: -(-self.sizes.count(self.masked) // 8),
        }
        here = {
            terms.WEIGHTS: self.width * self.sizes.count(),
            terms.ADAPTERS: FLOAT32 * self.whole if self.adapters else 0,
            terms.PLACES: PLACE * self.chosen,
            terms.TEMPORARY: self.largest
            * ((FLOAT32 + (self.width if self.masked else 0)) if self.adapters else self.width),
        }
        if beside and not self.adapters:
            return here, sum(state.values()) + sum(taken.values())
        if kept_mask and device == "cpu":
            taken[terms.BITS] += -(-self.sizes.count() // 8)
        if layout.state == "disk" and not self.adapters:
            return {**here, **taken}, sum(state.values())
        return {**here, **taken, **state}, 0
