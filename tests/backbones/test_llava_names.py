"""Names of LLaVA: anchors, the 7B skeleton, layouts both ways, and transformers' own renaming as a witness."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from mmsurgery.errors import Mismatch
from mmsurgery_llava import backbone, names

LLAVA_7B = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
"""The published config of LLaVA-1.5-7B."""

ANCHORS = {
    "model.vision_tower.embeddings.class_embedding": "vision.embed",
    "model.vision_tower.embeddings.patch_embedding.weight": "vision.embed",
    "model.vision_tower.embeddings.position_embedding.weight": "vision.embed",
    "model.vision_tower.pre_layrnorm.bias": "vision.norm",
    "model.vision_tower.encoder.layers.23.self_attn.k_proj.bias": "vision.23.attn.k",
    "model.vision_tower.encoder.layers.0.self_attn.out_proj.weight": "vision.0.attn.o",
    "model.vision_tower.encoder.layers.7.mlp.fc1.bias": "vision.7.mlp.fc1",
    "model.vision_tower.encoder.layers.7.layer_norm2.weight": "vision.7.norm",
    "model.vision_tower.post_layernorm.weight": "vision.norm",
    "model.multi_modal_projector.linear_1.weight": "connector.proj",
    "model.multi_modal_projector.linear_2.bias": "connector.proj",
    "model.language_model.embed_tokens.weight": "lm.embed",
    "model.language_model.layers.0.self_attn.q_proj.weight": "lm.0.attn.q",
    "model.language_model.layers.31.mlp.down_proj.weight": "lm.31.mlp.down",
    "model.language_model.layers.8.mlp.gate_proj.weight": "lm.8.mlp.gate",
    "model.language_model.layers.8.input_layernorm.weight": "lm.8.norm",
    "model.language_model.norm.weight": "lm.norm",
    "lm_head.weight": "lm.head",
}

STORED = {
    "language_model.model.layers.3.mlp.up_proj.weight": "model.language_model.layers.3.mlp.up_proj.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.vision_model.pre_layrnorm.weight": "model.vision_tower.pre_layrnorm.weight",
    "vision_tower.pre_layrnorm.weight": "model.vision_tower.pre_layrnorm.weight",
    "model.vision_tower.vision_model.pre_layrnorm.weight": "model.vision_tower.pre_layrnorm.weight",
    "multi_modal_projector.linear_1.bias": "model.multi_modal_projector.linear_1.bias",
    "module.lm_head.weight": "lm_head.weight",
    "module._orig_mod.lm_head.weight": "lm_head.weight",
    "model.language_model.layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.up_proj.weight": (
        "model.language_model.layers.1.mlp.up_proj.weight"
    ),
    "base_model.model.model.language_model.layers.1.mlp.up_proj.base_layer.weight": (
        "model.language_model.layers.1.mlp.up_proj.weight"
    ),
}


@pytest.fixture(scope="module")
def skeleton() -> Any:
    return backbone.skeleton(LLAVA_7B)


def test_import_is_light() -> None:
    code = "import sys, mmsurgery_llava; print([m for m in ('torch', 'transformers', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", ANCHORS)
def test_anchor(name: str) -> None:
    assert str(backbone.address(name)) == ANCHORS[name]


@pytest.mark.parametrize("stored", STORED)
def test_canonical_of_stored(stored: str) -> None:
    assert backbone.canonical(stored) == STORED[stored]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "model.vision_tower.encoder.layers.0.self_attn.qkv.weight",
        "model.language_model.layers.x.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.lora_A.weight",
        "language_model.model.norm.weight",
        "lm_head",
    ],
)
def test_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(Mismatch, match="belongs to no group of LLaVA"):
        backbone.address(name)


def test_7b_is_addressed_completely(skeleton: Any) -> None:
    parameters = dict(skeleton.named_parameters())
    assert len(parameters) == 686
    sizes: Counter[str] = Counter()
    for name, parameter in parameters.items():
        address = backbone.address(name)
        sizes["head" if address.component == "head" else address.group] += parameter.numel()
    millions = {group: round(size / 1e6, 1) for group, size in sizes.items()}
    assert millions == {"vision": 303.5, "connector": 21.0, "lm": 6607.6, "head": 131.3}
    assert set(ANCHORS) <= set(parameters)


def test_7b_components_say_what_the_names_say(skeleton: Any) -> None:
    """`self_attn.o_proj` and `self_attn.out_proj` are `attn.o`, `mlp.up_proj` is `mlp.up`, and so on."""
    spoken = {"self_attn.out_proj": "attn.o", "embed_tokens": "embed", "lm_head": "head"}
    for name, _ in skeleton.named_parameters():
        module = re.sub(
            r"^.*layers\.\d+\.|^model\.\w+\.(embeddings\.)?", "", name.removesuffix(".weight").removesuffix(".bias")
        )
        if "norm" in module or "layrnorm" in module:
            expected = "norm"
        elif module.endswith("_embedding"):
            expected = "embed"
        elif module.startswith("linear_"):
            expected = "proj"
        else:
            expected = spoken.get(module) or module.replace("self_attn", "attn").removesuffix("_proj")
        assert backbone.address(name).component == expected, name


def test_7b_layouts_go_both_ways(skeleton: Any) -> None:
    for name, _ in skeleton.named_parameters():
        for layout in names.LAYOUTS:
            assert backbone.canonical(names.on_disk(name, layout)) == name


def test_canonical_agrees_with_transformers(skeleton: Any) -> None:
    """transformers' own tables (not public) map published and re-saved names onto the same names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(skeleton)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    state = skeleton.state_dict()
    for name in state:
        for layout in ("published", "resaved", "memory"):
            stored = names.on_disk(name, layout)
            theirs = rename_source_key(stored, renamings, converters, skeleton.base_model_prefix, state)[0]
            assert backbone.canonical(stored) == theirs == name


def test_linear_targets_of_7b(skeleton: Any) -> None:
    modules = [name for name, _ in skeleton.named_modules()]
    counts = {g: sum(bool(re.fullmatch(backbone.linear_targets(g), m)) for m in modules) for g in names.LINEAR_TARGETS}
    assert counts == {"lm": 32 * 7, "vision": 24 * 6, "connector": 2}


def test_no_true_gradient_of_7b(skeleton: Any) -> None:
    listed = [name for name, _ in skeleton.named_parameters() if backbone.no_true_gradient(name)]
    assert listed == [f"model.vision_tower.encoder.layers.{i}.self_attn.k_proj.bias" for i in range(24)]
