"""Masks and data for training tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.names import Selector

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded


@pytest.fixture(scope="session")
def random_mask() -> Callable[..., Mask]:
    """`random_mask(loaded, modules, density=0.5, seed=0)`: independent bits inside the modules."""

    def make(loaded: Loaded, modules: str, density: float = 0.5, seed: int = 0, **changes: Any) -> Mask:
        rng = np.random.default_rng(seed)
        inside = Selector(modules).select(loaded.addresses)
        parameters = {}
        for name, parameter in loaded.model.named_parameters():
            chosen = rng.random(tuple(parameter.shape)) < (density if name in inside else 0.0)
            parameters[name] = MaskParameter(tuple(parameter.shape), loaded.addresses[name], pack(chosen))
        values = {
            "rule": "random",
            "beta": None,
            "estimator": None,
            "mixture": None,
            "modules": modules,
            "parameters": parameters,
            "base": {"model_type": loaded.backbone.model_type, "model_sha256": loaded.model_sha256},
            **changes,
        }
        return Mask(**values)

    return make
