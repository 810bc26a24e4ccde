"""What pictures look like to a model: what its connector gives of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mmsurgery.evaluate.remembered import Remembered

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.backbones.protocol import Question


def picture_features(loaded: Loaded, shown: Iterable[Question]) -> dict[str, torch.Tensor]:
    """Digest of a picture -> float32 `[width]` in main memory, the mean over its tokens; empty for a family that has no
    features to look at."""
    import torch

    remembered, cache = Remembered(loaded), dict[Any, Any]()
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for each in shown:
            if each.image_sha256 is None or each.image_sha256 in found:
                continue
            features = remembered.features(each, cache)
            if features is not None:
                found[each.image_sha256] = features.float().mean(dim=0).cpu()
    return found
