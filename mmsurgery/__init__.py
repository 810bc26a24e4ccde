"""mmsurgery: model surgery on multimodal LLMs, with saliency maps and masks as first-class artifacts.

The chain, as a library:

    ws = mmsurgery.open_workspace(path)
    loaded = ws.load_model("vanilla")
    forget = mmsurgery.measure_saliency(loaded, ws.samples("forget_vqa"))
    preserve = [mmsurgery.measure_saliency(loaded, ws.samples(part)) for part in mmsurgery.SETS["preserve"]]
    mask = mmsurgery.ratio_mask(forget, preserve, beta=1.0).restrict("lm,connector")

Importing this package brings in no torch, transformers, peft, h5py or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsurgery.api import Workspace, open_workspace
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.artifacts.saliency_map import SaliencyMap
    from mmsurgery.backbones.loading import load as load_model
    from mmsurgery.data.benchmark import SETS
    from mmsurgery.data.samples import Item, Sample
    from mmsurgery.errors import MmsurgeryError
    from mmsurgery.masks.compose import compose
    from mmsurgery.masks.rule import ratio_mask
    from mmsurgery.names import Address, Selector
    from mmsurgery.saliency.measure import measure_saliency

_HOMES = {
    "Address": "mmsurgery.names",
    "Item": "mmsurgery.data.samples",
    "Mask": "mmsurgery.artifacts.mask",
    "MmsurgeryError": "mmsurgery.errors",
    "SETS": "mmsurgery.data.benchmark",
    "SaliencyMap": "mmsurgery.artifacts.saliency_map",
    "Sample": "mmsurgery.data.samples",
    "Selector": "mmsurgery.names",
    "Workspace": "mmsurgery.api",
    "compose": "mmsurgery.masks.compose",
    "load_model": "mmsurgery.backbones.loading:load",
    "measure_saliency": "mmsurgery.saliency.measure",
    "open_workspace": "mmsurgery.api",
    "ratio_mask": "mmsurgery.masks.rule",
}

__all__ = [
    "SETS",
    "Address",
    "Item",
    "Mask",
    "MmsurgeryError",
    "SaliencyMap",
    "Sample",
    "Selector",
    "Workspace",
    "compose",
    "load_model",
    "measure_saliency",
    "open_workspace",
    "ratio_mask",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("mmsurgery")
    if name not in _HOMES:
        raise AttributeError(f"module 'mmsurgery' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
