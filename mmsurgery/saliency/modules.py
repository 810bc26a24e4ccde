"""Modules whose gradients by sample are known: linear layers, embeddings, patch convolutions, norms.

B samples, R leading rows of an activation, T tokens, I and O input and output features, H hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from mmsurgery.saliency.uses import LookupUse, MatrixUse, Owners, RowsUse, Use

KINDS = (nn.Linear, nn.Embedding, nn.Conv2d, nn.Conv3d)
"""Recognised by exact class; a subclass may do anything. Norms are recognised by what they compute."""


class NotUnderstood(Exception):
    """The model does something whose gradients by sample are not known here; says what."""


def check_kind(name: str, module: nn.Module) -> None:
    """Check that the parameters of a module can be followed.

    Raises:
        NotUnderstood: if not.
    """
    own = dict(module.named_parameters(recurse=False))
    understood = set(own) <= {"weight", "bias"} and "weight" in own
    if type(module) in KINDS:
        understood &= "forward" not in vars(module)
    else:
        understood &= all(parameter.dim() == 1 for parameter in own.values())
    if isinstance(module, nn.Embedding):
        understood &= module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        understood &= module.kernel_size == module.stride and module.groups == 1
        understood &= module.padding == "valid" or not any(module.padding)
        understood &= all(step == 1 for step in module.dilation)
    if not understood:
        raise NotUnderstood(f"{name} ({type(module).__name__}) holds {', '.join(sorted(own))} in a way of its own")


def check_norm(name: str, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
    """Check by its numbers that a module computes weight * xhat(inputs) + bias over the last axis.

    Raises:
        NotUnderstood: if not.
    """
    weight = module.get_parameter("weight")
    with torch.no_grad():
        xhat = normalised(module, inputs)
        expected = xhat * weight
        if "bias" in dict(module.named_parameters(recurse=False)):
            expected = expected + module.get_parameter("bias")
        twice = normalised(module, inputs, weight=2.0)
        tolerance = 32 * torch.finfo(output.dtype).eps
        same = xhat.shape == inputs.shape == output.shape and inputs.shape[-1] == len(weight)
        if not (same and _close(expected, output, tolerance) and _close(twice, 2 * xhat, tolerance)):
            raise NotUnderstood(f"{name} ({type(module).__name__}) is no weight * xhat + bias")


def _close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Within `tolerance` of the largest value; not-finite values are for the loss to report."""
    finite = torch.isfinite(expected)
    if not bool(finite.any()):
        return True
    difference = (actual - expected)[finite].abs().max()
    return bool(difference <= tolerance * expected[finite].abs().max())


def normalised(module: nn.Module, inputs: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """The module's output with all its weights `weight` and its biases 0, whatever it does inside."""
    values = {
        name: torch.full_like(parameter, 0.0 if name == "bias" else weight, requires_grad=False)
        for name, parameter in module.named_parameters(recurse=False)
    }
    output: torch.Tensor = torch.func.functional_call(module, values, (inputs,))
    return output


def uses_of(
    name: str, module: nn.Module, inputs: torch.Tensor, gradient: torch.Tensor, owners: Owners, dtype: torch.dtype
) -> dict[str, Use]:
    """The uses of a module's own parameters in one call.

    Args:
        inputs: what the module was called with, `[R, ...]`.
        gradient: of its output, `[R, ...]`.
        dtype: of the sums; sums over tokens are taken in it.

    Raises:
        NotUnderstood: if inputs and output have different rows.
    """
    if inputs.dim() == 0 or len(inputs) != len(gradient):
        raise NotUnderstood(f"{name} turns {tuple(inputs.shape)} into {tuple(gradient.shape)}")
    rows = len(gradient)
    if isinstance(module, nn.Embedding):
        values = gradient.reshape(rows, -1, gradient.shape[-1]).to(dtype)
        return {"weight": LookupUse(inputs.reshape(rows, -1), values, owners, module.padding_idx)}
    uses: dict[str, Use] = {}
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        gradient = gradient.flatten(2).transpose(1, 2)
        uses["weight"] = MatrixUse(gradient, _patches(inputs, module.kernel_size), owners)
    elif isinstance(module, nn.Linear):
        gradient = gradient.reshape(rows, -1, gradient.shape[-1])
        uses["weight"] = MatrixUse(gradient, inputs.reshape(rows, -1, inputs.shape[-1]), owners)
    else:
        products = gradient * normalised(module, inputs)
        uses["weight"] = RowsUse(products.reshape(rows, -1, gradient.shape[-1]).sum(1, dtype=dtype), owners)
        gradient = gradient.reshape(rows, -1, gradient.shape[-1])
    if getattr(module, "bias", None) is not None:
        uses["bias"] = RowsUse(gradient.sum(1, dtype=dtype), owners)
    return uses


def _patches(inputs: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """`[R, patches, C * prod(kernel)]` of `[R, C, *size]`: patches side by side, in the order of the
    convolution's output; what does not fill a patch is cut, as the convolution does."""
    counts = [size // step for size, step in zip(inputs.shape[2:], kernel, strict=True)]
    for axis, (count, step) in enumerate(zip(counts, kernel, strict=True), start=2):
        inputs = inputs.narrow(axis, 0, count * step)
    split = [extent for pair in zip(counts, kernel, strict=True) for extent in pair]
    values = inputs.reshape(*inputs.shape[:2], *split)
    axes = range(2, 2 + len(split))
    values = values.permute(0, *axes[::2], 1, *axes[1::2])
    return values.reshape(len(inputs), math.prod(counts), -1)
