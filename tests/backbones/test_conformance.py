"""The kit passes LLaVA, and names what is wrong with a backbone that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsurgery.backbones.conformance import assert_conforms, check
from mmsurgery.names import Address
from mmsurgery_llava import LlavaBackbone


def test_llava_conforms(tmp_path: Path) -> None:
    assert_conforms(LlavaBackbone(), tmp_path)


class WrongGroup(LlavaBackbone):
    def address(self, name: str) -> Address:
        return super().address(name)._replace(group="lm") if "projector" in name else super().address(name)


class WrongMap(LlavaBackbone):
    """Forgets that a model built from its config is saved without `vision_model.`."""

    def canonical(self, stored: str) -> str:
        if stored.startswith("vision_tower."):
            return stored.replace("vision_tower.vision_model.", "model.vision_tower.")
        return super().canonical(stored)


class WrongLabels(LlavaBackbone):
    def collate(self, *args: Any, **options: Any) -> dict[str, Any]:
        batch = super().collate(*args, **options)
        return {**batch, "labels": batch["input_ids"]}


class NoMask(LlavaBackbone):
    def collate(self, *args: Any, **options: Any) -> dict[str, Any]:
        batch = super().collate(*args, **options)
        return {**batch, "attention_mask": batch["attention_mask"] * 0 + 1}


class RightPaddedPrompts(LlavaBackbone):
    def prompts(self, processor: Any, questions: Any, *, cache: Any = None) -> dict[str, Any]:
        batch = super().prompts(processor, questions, cache=cache)
        order = batch["attention_mask"].argsort(dim=1, descending=True, stable=True)
        return {key: v.gather(1, order) if v.ndim == 2 else v for key, v in batch.items()}


class WrongOwners(LlavaBackbone):
    def row_owners(self, *args: Any) -> Any:
        return super().row_owners(*args).flip(0)


class WrongZero(LlavaBackbone):
    def no_true_gradient(self, name: str) -> bool:
        return name.endswith("layers.0.self_attn.q_proj.bias")


class WrongTargets(LlavaBackbone):
    def linear_targets(self, group: str) -> str:
        return super().linear_targets(group).replace("fc[12]", "fc1")


class WrongRule(LlavaBackbone):
    def sample_gradients(self) -> dict[str, Any]:
        return {"CLIPVisionEmbeddings": lambda module, inputs, gradient: {"class_embedding": gradient[:, 1]}}


class Unseeded(LlavaBackbone):
    seeds = iter(range(100))

    def micro(self, folder: Path, vocabulary: Any, *, seed: int, size: str = "portraits") -> None:
        super().micro(folder, vocabulary, seed=next(self.seeds), size=size)


@pytest.mark.parametrize(
    ("broken", "failure"),
    [
        (WrongGroup, "groups: model.multi_modal_projector.linear_1.weight is said to be in group lm"),
        (WrongMap, "layouts: built: parameter model.vision_tower.embeddings.class_embedding is missing"),
        (WrongLabels, "labels: sample short: the labels read"),
        (NoMask, "padding: sample short: loss"),
        (RightPaddedPrompts, "prompts: prompts are not padded on the left"),
        (WrongOwners, "owners: model.vision_tower.embeddings.patch_embedding: the rows of sample short"),
        (WrongZero, "zero_gradients: model.vision_tower.encoder.layers.0.self_attn.q_proj.bias is said"),
        (WrongTargets, "targets: vision: model.vision_tower.encoder.layers.0.mlp.fc2 is left out"),
        (WrongRule, "gradient_rules: model.vision_tower.embeddings.class_embedding: the rule's gradients"),
        (Unseeded, "determinism: model.safetensors differs"),
    ],
)
def test_a_wrong_backbone_is_told_where(broken: type[LlavaBackbone], failure: str, tmp_path: Path) -> None:
    failures = check(broken(), tmp_path)
    assert any(line.startswith(failure) for line in failures), failures


def test_all_failures_are_reported_together(tmp_path: Path) -> None:
    class Two(WrongTargets, WrongZero):
        pass

    with pytest.raises(AssertionError, match=r"(?s)Two: .*targets: .*zero_gradients: "):
        assert_conforms(Two(), tmp_path)
