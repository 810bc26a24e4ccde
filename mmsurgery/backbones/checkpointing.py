"""Computing activations twice instead of keeping them (gradient checkpointing), layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mmsurgery.errors import UsageError


def checkpoint_activations(model: Any) -> None:
    """Keep no activations inside the model's layers: the backward pass computes them a second time.

    transformers does that in training mode only, which is set for the modules that do it alone: what they
    are made of stays in eval mode, so that nothing drops out and the gradients are the same.

    Raises:
        UsageError: for a model that cannot do it.
    """
    # the older of the two names goes away with transformers 6
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:  # transformers' word for a model without such layers
        raise UsageError(
            f"{type(model).__name__} cannot compute its activations twice", "choose a layout that keeps them"
        ) from error
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


@contextlib.contextmanager
def activations_checkpointed(model: Any) -> Iterator[None]:
    """`checkpoint_activations` inside; modes, switches and hooks are put back after."""
    before = [(module, module.training, getattr(module, "gradient_checkpointing", None)) for module in model.modules()]
    checkpoint_activations(model)
    try:
        yield
    finally:
        if hasattr(model, "_require_grads_hook"):  # transformers leaves it at the embeddings
            model.disable_input_require_grads()
        for module, training, checkpointing in before:
            module.training = training
            if checkpointing is not None:
                module.gradient_checkpointing = checkpointing
