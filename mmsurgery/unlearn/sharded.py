"""A model cut up among ranks: each holds its rows of every weight (torch's FSDP2), trains them, and gives them back.

The layers of the model's towers, and what stands around them, are put together on every rank as they are needed and
taken apart again; gradients are averaged over ranks and cut up. Each rank trains the rows it holds as one process
trains whole weights: with their part of the mask, their moments, their float32 masters.
"""

from __future__ import annotations

import contextlib
import functools
import math
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.checkpoint import model_config
from mmsurgery.artifacts.mask import pack
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import Loaded, addresses, device, tied
from mmsurgery.data.samples import Sample
from mmsurgery.errors import InternalError, UnusableData, UsageError
from mmsurgery.memory import Layout
from mmsurgery.methods.base import Method
from mmsurgery.ranks import Ranks
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import MaskedUpdate

if TYPE_CHECKING:
    import torch

    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.unlearn.save import Trained


def check(ranks: Ranks, method: Method, lora: LoRA | None, layout: Layout) -> None:
    """Whether several ranks can do what is asked for.

    Raises:
        UsageError: if they cannot.
    """
    if ranks.count == 1:
        return
    if not method.shared():
        raise UsageError(
            f"method {method.name} does not say that its terms are means over samples, which {ranks.count} processes "
            "could share",
            "start it without torchrun, or set mean_of_samples in its class",
        )
    if lora is not None:
        raise UsageError(f"LoRA is trained in one process, not in {ranks.count}", "start it without torchrun")
    if layout.state != "device":
        raise UsageError(
            f"state {layout.state} is for one process: of {ranks.count}, each has its state with its rows of the model",
            "leave the layout out",
        )


def check_pictures(ranks: Ranks, samples: Sequence[Sample]) -> None:
    """Check that every sample runs the same modules, for all ranks run them together.

    Raises:
        UnusableData: if some have pictures and others none.
    """
    without = [sample.id for sample in samples if sample.image_bytes is None]
    if ranks.count > 1 and 0 < len(without) < len(samples):
        raise UnusableData(
            f"sample {without[0]} has no picture, others have one: {ranks.count} processes cannot share them",
            "start it without torchrun",
        )


@contextlib.contextmanager
def running(ranks: Ranks) -> Iterator[None]:
    """Around work with models that are cut up.

    Raises:
        MachineFault: naming a rank that failed.
    """
    with warnings.catch_warnings(), ranks.connected():
        # logits are a view; nothing is done to them in place
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        yield


class Shards:
    """What a rank holds of a model.

    Args:
        model: float32 in main memory; cut up in place, its rows on `device()`.
        low: compute in bfloat16; rows and gradients are float32.

    Attributes:
        cut: canonical name -> the weight as torch cuts it up.
        held: canonical name -> this rank's rows, in the memory that the model itself computes with.
    """

    def __init__(self, model: Any, mesh: Any, ranks: Ranks, *, low: bool) -> None:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if low else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # taken apart after every forward pass: where no backward pass follows, what is trained next would be missed
        for module in [*layers(model), model]:
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        model.nothing = types.MethodType(lambda _: None, model)
        register_fsdp_forward_method(model, "nothing")
        self.ranks = ranks
        self.model = model
        self.cut: dict[str, Any] = dict(model.named_parameters())
        self.held = {
            name: torch.nn.Parameter(local(parameter.detach()), requires_grad=False)
            for name, parameter in self.cut.items()
        }

    @contextlib.contextmanager
    def put_together(self) -> Iterator[None]:
        """Inside, parts of the model can be called alone: what stands around its layers stays put together."""
        self.model.set_reshard_after_forward(False, recurse=False)
        self.model.nothing()
        try:
            yield
        finally:
            self.model.set_reshard_after_forward(True, recurse=False)
            self.model.reshard()

    def rows(self, name: str) -> slice:
        """Which rows of a weight this rank holds."""
        counts = self.counts(name)
        start = sum(counts[: self.ranks.rank])
        return slice(start, start + counts[self.ranks.rank])

    def counts(self, name: str) -> list[int]:
        """How many rows of a weight each rank holds, in their order."""
        rows = int(self.cut[name].shape[0])
        size = -(-rows // self.ranks.count)
        return [min(size, max(0, rows - size * rank)) for rank in range(self.ranks.count)]

    def bits(self, mask: Mask, name: str) -> np.ndarray[Any, Any]:
        """Packed bits of the rows that this rank holds."""
        numel, rows = mask.parameters[name].numel, self.rows(name)
        width = numel // mask.parameters[name].shape[0]
        start, stop = rows.start * width, rows.stop * width
        found = np.unpackbits(mask.parameters[name].bits[start // 8 : (stop + 7) // 8], bitorder="little")
        return pack(found[start % 8 :][: stop - start].astype(bool))

    def bit_sums(self) -> dict[str, int]:
        """Canonical name -> `bit_sum` of what is held of a weight."""
        from mmsurgery.backbones.loading import bit_sum

        return {name: bit_sum(rows) for name, rows in self.held.items()}

    def whole(self, name: str) -> torch.Tensor:
        """A weight in main memory, put together for the first rank, while the others `serve`."""
        self.ranks.told(name)
        whole = self._join(name)
        if whole is None:
            raise InternalError(f"rank {self.ranks.rank} asks for {name}, which the first one should")
        return whole

    def serve(self) -> None:
        """Give the first rank the weights that it asks for, until it comes here too."""
        while name := self.ranks.told(""):
            self._join(name)

    def _join(self, name: str) -> torch.Tensor | None:
        return self.ranks.join(self.held[name].detach().cpu(), self.counts(name))


def local(parameter: Any) -> torch.Tensor:
    """The rows that are held here of a tensor that is cut up."""
    rows: torch.Tensor = parameter.to_local()
    return rows


def layers(model: Any) -> Iterator[Any]:
    """The repeated layers of a model's towers: what its outermost lists of modules hold."""
    import torch

    def below(module: Any) -> Iterator[Any]:
        for child in module.children():
            if isinstance(child, torch.nn.ModuleList):
                yield from (layer for layer in child if any(True for _ in layer.parameters()))
            else:
                yield from below(child)

    return below(model)


def load_shards(path: Path, ranks: Ranks, *, low: bool) -> tuple[Loaded, Shards]:
    """Load a model, cut up; ranks take turns, so that one whole model is in main memory at a time.

    Raises:
        as `loading.load`.
    """
    import torch

    family, mesh = backbone(model_config(path)["model_type"]), ranks.mesh(device().type)
    processor = family.load_processor(path)  # first, as in `loading.load`
    found: tuple[Loaded, Shards] | None = None
    for turn in range(ranks.count):
        if turn == ranks.rank:
            model = family.load_model(path, dtype=torch.float32)
            named = addresses(family, model)
            same = tied(model)
            shards = Shards(model, mesh, ranks, low=low)
            found = Loaded(model, processor, family, path, named, same), shards
        ranks.barrier()
    if found is None:
        raise InternalError(f"rank {ranks.rank} of {ranks.count} had no turn")
    for name, rows in found[1].held.items():
        if rows.numel() and not all(math.isfinite(float(end)) for end in rows.detach().aminmax()):
            raise UnusableData(f"{name} of the model holds NaN or infinite values", "use another checkpoint")
    return found


class ShardedUpdate(MaskedUpdate):
    """A `MaskedUpdate` of the rows that a rank holds. Its questions are answered for all ranks."""

    def __init__(self, shards: Shards, mask: Mask | None, *, strict: bool) -> None:
        super().__init__(shards.model, mask, strict=strict, shards=shards)
        self._shards, self._mask, self._strict = shards, mask, strict
        for name in self.trainable:
            shards.cut[name].register_post_accumulate_grad_hook(functools.partial(self._take, name))

    def _take(self, name: str, cut: Any) -> None:
        """Add a weight's gradient, which a backward pass has just cut up, to that of what is trained."""
        gradient, cut.grad = local(cut.grad), None
        moved = self.trainable[name]
        if name in self._masters:
            held = self._shards.held[name]
            held.grad = gradient
            self._masters[name].take(held)
        elif moved.grad is None:
            moved.grad = gradient
        else:
            moved.grad.add_(gradient)

    def rows(self, name: str) -> slice:
        return self._shards.rows(name)

    def reached(self) -> bool:
        return any(self._shards.ranks.exchange(super().reached()))

    def trained(self) -> dict[str, Trained]:
        """What the first rank saves, while the others `Shards.serve`.

        Raises:
            InternalError: if what was trained is not what the model computes with.
        """
        for name, held in self._shards.held.items():
            if held.data_ptr() != local(self._shards.cut[name].detach()).data_ptr():
                raise InternalError(f"{name} was trained beside the model's own memory; nothing is kept")
        return {name: functools.partial(self._stored, name) for name in self.trainable}

    def _stored(self, name: str, array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
        from mmsurgery.unlearn.save import as_stored

        new = as_stored(self._shards.whole(name), dtype).reshape(array.shape)
        return np.where(self._mask[name], new, array) if self._strict and self._mask is not None else new
