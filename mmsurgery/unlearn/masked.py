"""The masked update (Eq. 3): which weights the gradient reaches, and which may move at all.

A mask's bits stay packed, an eighth of a byte per weight, on the parameters' device. They are applied
to the bit patterns of float32 values: a masked-out gradient becomes +0.0 whatever it was, NaN and
infinity included, where a multiplication would keep NaN and leave -0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.errors import Mismatch, UnusableData
from mmsurgery.memory import Store
from mmsurgery.unlearn.masters import Master, Selection

if TYPE_CHECKING:
    import torch

    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.unlearn.save import Trained
    from mmsurgery.unlearn.sharded import Shards

BLOCK = 1 << 18
"""Weights handled at a time: the expanded bits of a block stay in the processor's cache."""
GPU_BLOCK = 1 << 24
"""The same on a GPU, where starting a kernel takes longer than a small block: 64 MiB of expanded bits."""

_WORDS = -(np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.int32)
"""Byte -> eight words of all zeros or all ones, `[256, 8]`."""


class PackedBits:
    """Packed bits of one tensor, bit order little, on a device.

    Args:
        bits: uint8 `[ceil(numel / 8)]`.
        numel: number of weights.
    """

    def __init__(self, bits: torch.Tensor, numel: int) -> None:
        self.bits, self.numel = bits, numel

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slices of the flat tensor with their bits expanded to int32 words of all zeros or all ones, which are
        good until the next."""
        expand, size = (_looked_up(BLOCK), BLOCK) if self.bits.device.type == "cpu" else (_shifted, GPU_BLOCK)
        for start in range(0, self.numel, size):
            stop = min(start + size, self.numel)
            packed = self.bits[start // 8 : (stop + 7) // 8]
            yield slice(start, stop), expand(packed).view(-1)[: stop - start]

    def clear_outside(self, values: torch.Tensor) -> None:
        """Make every float32 value outside the mask +0.0, in place."""
        flat = _patterns(values)
        for part, words in self.blocks():
            flat[part].bitwise_and_(words)

    def any_inside(self, values: torch.Tensor) -> bool:
        """Whether any float32 value inside the mask is not zero."""
        magnitudes = _patterns(values)
        return any(bool((magnitudes[part] & words & 0x7FFFFFFF).any()) for part, words in self.blocks())

    def restore_outside(self, values: torch.Tensor, original: torch.Tensor) -> None:
        """Put every value outside the mask back to the original's bit pattern, in place."""
        flat, kept = _patterns(values), _patterns(original)
        for part, words in self.blocks():
            flat[part].bitwise_xor_(kept[part]).bitwise_and_(words).bitwise_xor_(kept[part])


def _looked_up(block: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Packed bits -> words `[n, 8]`, in main memory: NumPy reads its table in two thirds of torch's time."""
    import torch

    buffer = np.empty((-(-block // 8), 8), np.int32)

    def expand(packed: torch.Tensor) -> torch.Tensor:
        words = buffer[: len(packed)]
        np.take(_WORDS, packed.numpy(), axis=0, out=words, mode="clip")
        return torch.from_numpy(words)

    return expand


def _shifted(packed: torch.Tensor) -> torch.Tensor:
    """Packed bits -> words `[n, 8]`: each bit is shifted to the sign, and the sign to the right."""
    import torch

    places = torch.arange(31, 23, -1, dtype=torch.int32, device=packed.device)
    return (packed.int()[:, None] << places).bitwise_right_shift_(31)


def _patterns(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.detach().view(-1).view(torch.int32)


class Update:
    """What of a model is trained, and what happens to its gradient and its weights around an optimizer
    step: in this class, nothing.

    Attributes:
        trainable: name -> parameter that the optimizer moves, in the model's order.
    """

    trainable: dict[str, torch.nn.Parameter]

    def hold(self) -> None:
        """Before a step without retain terms: remember what it may not move."""

    def rows(self, name: str) -> slice:
        """Which rows of a weight are held here: all, but for one that is cut up among ranks."""
        return slice(None)

    def mask_forget_gradient(self) -> None:
        """After the forget terms, before the retain terms."""

    def reached(self) -> bool:
        """Whether the forget terms left a gradient on anything that they may move; asked before the retain terms."""
        return any(p.grad is not None and bool(p.grad.any()) for p in self.trainable.values())

    def restore(self) -> None:
        """After the optimizer step."""

    def trained(self) -> dict[str, Trained]:
        """Canonical name -> what may have moved of the model, to be saved; once the training has ended."""
        return dict(self.trainable)


class MaskedUpdate(Update):
    """What of a model is trained, and how its gradient and its weights are masked.

    Without a mask every parameter is trained and nothing is masked. With one, parameters outside its
    modules are frozen; inside them the forget gradient reaches the mask's weights only, and, if
    `strict`, nothing but these weights is in the optimizer's hands: it moves masters of them alone, so that
    neither weight decay nor momentum nor a gradient of any value outside the mask is ever seen.
    A step of forget terms alone moves nothing else in any scope: what it moved by momentum or weight
    decay outside the mask is taken back.

    Args:
        model: parameters in the dtype that it computes in; `requires_grad` of each is set here.
        mask: names and shapes must be the model's.
        strict: scope `all`.
        stored: name -> the weight as its checkpoint has it, float32, where the model computes in less: every weight
            that is trained has a master then. None where the model is float32.
        store: where masters are made; in another place than on the model's GPU, every weight has one.
        shards: what this rank holds of a model that is cut up among several: of each weight that, and its bits, are
            all that is looked at.

    Attributes:
        trainable: canonical name -> parameter or master, in the model's order.

    Raises:
        Mismatch: if mask and model name different parameters.
        UnusableData: if the mask selects none of the model's weights.
        MachineFault: if there is no room for masters in files.
    """

    def __init__(
        self,
        model: Any,
        mask: Mask | None,
        *,
        strict: bool = False,
        stored: Callable[[str], torch.Tensor] | None = None,
        store: Store | None = None,
        shards: Shards | None = None,
    ) -> None:
        import torch

        parameters: dict[str, torch.nn.Parameter] = dict(model.named_parameters()) if shards is None else shards.cut
        names = set(parameters)
        if mask is not None:
            check_fit(mask, {name: tuple(p.shape) for name, p in parameters.items()})
            names = mask.in_modules()
            if strict:
                names = {name for name in names if mask.parameters[name].selected}
        self.trainable = {}
        self._store = store or Store()
        self._masters: dict[str, Master] = {}
        self._bits: dict[str, PackedBits] = {}
        self._held: dict[str, torch.Tensor] = {}
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)
            weight = parameter if shards is None else shards.held[name]
            weight.data = weight.data.contiguous()
            if name not in names:
                continue
            bits = None
            if mask is not None and mask.parameters[name].selected < parameter.numel():
                bits = mask.parameters[name].bits if shards is None else shards.bits(mask, name)
            beside = self._store.place != "device" and weight.device.type != "cpu"
            selection = Selection(bits, weight.numel(), weight.device) if strict and bits is not None else None
            moved = weight
            if selection is not None or stored is not None or beside:
                values = weight if stored is None else stored(name)
                self._masters[name] = Master(weight, values, self._store, selection)
                moved = self._masters[name].parameter
            if bits is not None and not strict:
                self._bits[name] = PackedBits(torch.tensor(bits, device=moved.device), weight.numel())
            self.trainable[name] = moved

    def hold(self) -> None:
        self._held = {
            name: self._store.zeros(moved.shape, moved.dtype, moved.device).copy_(moved.detach())
            for name, moved in self.trainable.items()
            if name in self._bits
        }

    def mask_forget_gradient(self) -> None:
        """Clear what the forget terms left outside the mask; in scope `all` there is nothing of it."""
        for name, bits in self._bits.items():
            gradient = self.trainable[name].grad
            if gradient is not None:
                bits.clear_outside(gradient)

    def reached(self) -> bool:
        gradients = ((name, p.grad) for name, p in self.trainable.items() if p.grad is not None)
        return any(self._bits[n].any_inside(g) if n in self._bits else bool(g.any()) for n, g in gradients)

    def restore(self) -> None:
        """Put everything outside the mask back after a step that was held; round masters into their weights."""
        for name, original in self._held.items():
            self._bits[name].restore_outside(self.trainable[name], original)
        self._held = {}
        for master in self._masters.values():
            master.give()

    def trained(self) -> dict[str, Trained]:
        masters = self._masters
        return {name: masters[name].stored if name in masters else p for name, p in self.trainable.items()}


def check_fit(mask: Mask, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a mask is about a model of these parameters and selects some of them.

    Raises:
        Mismatch: naming up to three parameters that differ.
        UnusableData: if the mask selects nothing.
    """
    masked = {name: parameter.shape for name, parameter in mask.parameters.items()}
    differing = sorted(name for name in masked.keys() | shapes.keys() if masked.get(name) != shapes.get(name))
    if differing:
        shown = "; ".join(
            f"{name}: mask {_shape(masked.get(name))}, model {_shape(shapes.get(name))}" for name in differing[:3]
        )
        raise Mismatch(f"the mask does not fit the model in {len(differing)} parameters: {shown}", "mmsurgery mask")
    inside = mask.in_modules()
    if not any(mask.parameters[name].selected for name in inside):
        total = sum(mask.parameters[name].numel for name in inside)
        raise UnusableData(
            f"the mask selects 0 of the {total:,} weights of {mask.modules}", "lower --beta, or name other --modules"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
