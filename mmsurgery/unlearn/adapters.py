"""LoRA, with or without a mask.

Without a mask the adapters are stock peft: W0 + scale * B A. With one, what is trained is
W0 + M * (scale * B A): the mask acts on the weight that the layer uses, never on A or B, so that what
is trained is what is saved. peft's layers are put into the model in place, and the forward of a masked
one is exchanged. Biases, norms, embeddings and the head are never touched.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.autograd.function import once_differentiable

from mmsurgery.artifacts.tensors import to_float32
from mmsurgery.unlearn.masked import PackedBits, Update
from mmsurgery.unlearn.save import as_stored

if TYPE_CHECKING:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.unlearn.lora import LoRA
    from mmsurgery.unlearn.save import Trained

_ADAPTER = "default"
"""peft's name of the one adapter."""


class LowRankUpdate(Update):
    """A model's linear layers with adapters, the only thing that is trained.

    Args:
        model: in any dtype; peft's layers take the place of its own.
        targets: canonical names of the weights, see `LoRA.targets`.
        seed: of A's initialisation.
        alpha: the adapters' scale is alpha / rank; 1 where None.
    """

    def __init__(
        self,
        model: Any,
        lora: LoRA,
        targets: Sequence[str],
        mask: Mask | None,
        *,
        seed: int,
        alpha: float | None = None,
    ) -> None:
        modules = [name.removesuffix(".weight") for name in targets]
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.rank if alpha is None else alpha,
            lora_dropout=0.0,
            init_lora_weights="gaussian",
            target_modules="|".join(map(re.escape, modules)),
        )
        model.requires_grad_(False)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)
        self._layers = {name: model.get_submodule(module) for name, module in zip(targets, modules, strict=True)}
        self._bits: dict[str, PackedBits] = {}
        for name, layer in self._layers.items():
            if mask is not None and mask.parameters[name].selected < mask.parameters[name].numel:
                weight = layer.base_layer.weight
                self._bits[name] = PackedBits(
                    torch.tensor(mask.parameters[name].bits, device=weight.device), weight.numel()
                )
                layer.forward = _MaskedForward(layer, self._bits[name])
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in self.trainable.values():
            parameter.data = parameter.data.float()

    def trained(self) -> dict[str, Trained]:
        """The layers' weights with their adapters merged into them, in place; outside the mask they keep their bits.
        A model that computes in less stays as it is, see `merged_into`."""
        if any(layer.base_layer.weight.dtype != torch.float32 for layer in self._layers.values()):
            return self.merged_into()
        merged: dict[str, Trained] = {}
        with torch.no_grad():
            for name, layer in self._layers.items():
                weight = layer.base_layer.weight
                original = weight.clone() if name in self._bits else None
                layer.merge()
                if original is not None:
                    self._bits[name].restore_outside(weight, original)
                merged[name] = weight
        return merged

    def merged_into(self) -> dict[str, Trained]:
        """What becomes of the layers' weights as a checkpoint has them once their adapters are merged into them, one
        layer in memory at a time; outside the mask they keep their bits. The model stays as it is."""
        return {name: functools.partial(self._stored, name) for name in self._layers}

    @torch.no_grad()
    def _stored(self, name: str, array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
        layer = self._layers[name]
        a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        delta = (b @ a).mul_(layer.scaling[_ADAPTER]).cpu()
        weight = torch.tensor(to_float32(array, dtype))
        merged = delta.add_(weight)
        if name in self._bits:
            PackedBits(self._bits[name].bits.cpu(), weight.numel()).restore_outside(merged, weight)
        return as_stored(merged, dtype)


class _MaskedForward:
    """What a masked layer computes in place of peft's forward."""

    def __init__(self, layer: Any, bits: PackedBits) -> None:
        self.layer, self.bits = layer, bits

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        base, scale = self.layer.base_layer, self.layer.scaling[_ADAPTER]
        a, b = self.layer.lora_A[_ADAPTER].weight, self.layer.lora_B[_ADAPTER].weight
        if self.layer.merged:
            return torch.nn.functional.linear(x, base.weight, base.bias)
        out: torch.Tensor = _MaskedLinear.apply(x, a, b, base.weight, base.bias, scale, self.bits)  # type: ignore[no-untyped-call]
        return out


class _MaskedLinear(torch.autograd.Function):
    """y = x (W + M * (scale * B A))^T + bias, with gradients for x, A and B; the merged weight is computed
    anew in the backward, so that no graph keeps a dense matrix per layer.

    x `[..., in]`, A `[r, in]`, B `[out, r]`, W and M `[out, in]`; A and B float32, x and W in the model's dtype, to
    which the merged weight is rounded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
        bits: PackedBits,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, a, b, weight)
        ctx.scale, ctx.bits = scale, bits
        return torch.nn.functional.linear(x, _merged(a, b, weight, scale, bits), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, weight = ctx.saved_tensors
        grad_x = grad @ _merged(a, b, weight, ctx.scale, ctx.bits) if ctx.needs_input_grad[0] else None
        dense = grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        dense = dense.float()
        ctx.bits.clear_outside(dense)
        return grad_x, ctx.scale * (b.T @ dense), ctx.scale * (dense @ a.T), None, None, None, None


def _merged(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, scale: float, bits: PackedBits) -> torch.Tensor:
    """W + M * (scale * B A)."""
    delta = (b @ a).mul_(scale)
    bits.clear_outside(delta)
    return delta.add_(weight).to(weight.dtype)
