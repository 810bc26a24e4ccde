"""The kit passes Qwen2-VL, and says where a map of it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsurgery.backbones import discovery
from mmsurgery.backbones.conformance import assert_conforms, check
from mmsurgery.names import Address
from mmsurgery_qwen2_vl import Qwen2VLBackbone


def test_qwen2_vl_conforms(tmp_path: Path) -> None:
    assert_conforms(discovery.backbone("qwen2_vl"), tmp_path)


class MergerAsVision(Qwen2VLBackbone):
    """The connector by its place in the module tree, not by longest prefix."""

    def address(self, name: str) -> Address:
        found = super().address(name)
        return found._replace(group="vision") if name.startswith("model.visual.") else found


class VisionAsLanguage(Qwen2VLBackbone):
    def address(self, name: str) -> Address:
        found = super().address(name)
        return found._replace(group="lm") if name == "model.visual.blocks.1.mlp.fc1.bias" else found


class EvenPictures(Qwen2VLBackbone):
    """Rows shared out as if all pictures had one size."""

    def row_owners(self, config: Any, batch: Any, module: str, rows: int) -> Any:
        import torch

        pictured = (batch["input_ids"] == config.image_token_id).any(1).nonzero()[:, 0]
        return pictured[torch.arange(rows) * len(pictured) // rows]


class NoTokenTypes(Qwen2VLBackbone):
    def collate(self, *args: Any, **options: Any) -> dict[str, Any]:
        return {k: v for k, v in super().collate(*args, **options).items() if k != "mm_token_type_ids"}


class PublishedNamesOnly(Qwen2VLBackbone):
    def canonical(self, stored: str) -> str:
        if stored.startswith("model.visual."):
            return stored.replace("model.visual.", "model.language_model.visual.")
        return super().canonical(stored)


class ZeroKeyBias(Qwen2VLBackbone):
    """As in CLIP, whose attention does not rotate keys."""

    def no_true_gradient(self, name: str) -> bool:
        return name == "model.language_model.layers.0.self_attn.k_proj.bias"


@pytest.mark.parametrize(
    ("broken", "failures"),
    [
        (MergerAsVision, ("groups: no parameter is in group connector", "targets: vision: model.visual.merger.mlp.0")),
        (VisionAsLanguage, ("groups: model.visual.blocks.1.mlp.fc1.bias is said to be in group lm",)),
        (EvenPictures, ("owners: model.visual.patch_embed.proj: the rows of sample short",)),
        (NoTokenTypes, ("padding: ValueError: Multimodal data was passed",)),
        (
            PublishedNamesOnly,
            ("names: canonical('model.visual.", "layouts: memory: parameter model.language_model.visual."),
        ),
        (ZeroKeyBias, ("zero_gradients: model.language_model.layers.0.self_attn.k_proj.bias is said",)),
    ],
)
def test_a_wrong_backbone_is_told_where(
    broken: type[Qwen2VLBackbone], failures: tuple[str, ...], tmp_path: Path
) -> None:
    found = check(broken(), tmp_path)
    for failure in failures:
        assert any(line.startswith(failure) for line in found), found
