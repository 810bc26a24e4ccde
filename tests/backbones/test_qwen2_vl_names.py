"""Names of Qwen2-VL: anchors, the 7B skeleton, layouts both ways, and transformers' own renaming as a witness."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from mmsurgery.backbones import loading
from mmsurgery.errors import InputRefused, Mismatch
from mmsurgery_qwen2_vl import backbone, names

QWEN2_VL_7B = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
"""The published config of Qwen2-VL-7B-Instruct."""

ANCHORS = {
    "model.visual.patch_embed.proj.weight": "vision.embed",
    "model.visual.blocks.31.attn.qkv.weight": "vision.31.attn.qkv",
    "model.visual.blocks.31.attn.qkv.bias": "vision.31.attn.qkv",
    "model.visual.blocks.0.attn.proj.bias": "vision.0.attn.o",
    "model.visual.blocks.7.mlp.fc1.bias": "vision.7.mlp.fc1",
    "model.visual.blocks.7.mlp.fc2.weight": "vision.7.mlp.fc2",
    "model.visual.blocks.7.norm1.weight": "vision.7.norm",
    "model.visual.blocks.7.norm2.bias": "vision.7.norm",
    "model.visual.merger.ln_q.weight": "connector.norm",
    "model.visual.merger.mlp.0.weight": "connector.proj",
    "model.visual.merger.mlp.2.bias": "connector.proj",
    "model.language_model.embed_tokens.weight": "lm.embed",
    "model.language_model.layers.0.self_attn.q_proj.bias": "lm.0.attn.q",
    "model.language_model.layers.8.self_attn.k_proj.bias": "lm.8.attn.k",
    "model.language_model.layers.8.self_attn.v_proj.bias": "lm.8.attn.v",
    "model.language_model.layers.8.self_attn.o_proj.weight": "lm.8.attn.o",
    "model.language_model.layers.27.mlp.down_proj.weight": "lm.27.mlp.down",
    "model.language_model.layers.8.mlp.gate_proj.weight": "lm.8.mlp.gate",
    "model.language_model.layers.8.mlp.up_proj.weight": "lm.8.mlp.up",
    "model.language_model.layers.8.post_attention_layernorm.weight": "lm.8.norm",
    "model.language_model.norm.weight": "lm.norm",
    "lm_head.weight": "lm.head",
}

STORED = {
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.layers.3.mlp.up_proj.weight": "model.language_model.layers.3.mlp.up_proj.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    "visual.merger.mlp.0.weight": "model.visual.merger.mlp.0.weight",
    "visual.blocks.3.norm1.bias": "model.visual.blocks.3.norm1.bias",
    "module.model.norm.weight": "model.language_model.norm.weight",
    "module._orig_mod.visual.patch_embed.proj.weight": "model.visual.patch_embed.proj.weight",
    "model.visual.blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.attn.qkv.bias": (
        "model.visual.blocks.1.attn.qkv.bias"
    ),
    "base_model.model.model.language_model.layers.1.mlp.up_proj.base_layer.weight": (
        "model.language_model.layers.1.mlp.up_proj.weight"
    ),
}


@pytest.fixture(scope="module")
def skeleton() -> Any:
    return backbone.skeleton(QWEN2_VL_7B)


def test_import_is_light() -> None:
    code = "import sys, mmsurgery_qwen2_vl; print([m for m in ('torch', 'transformers', 'PIL') if m in sys.modules])"
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
        "lm_head",
        "visual.merger.ln_q.weight",
        "model.norm.weight",
        "model.visual.layers.0.attn.qkv.weight",
        "model.visual.blocks.x.attn.qkv.weight",
        "model.visual.blocks.0.attn.q_proj.weight",
        "model.visual.merger.mlp.1.weight",
        "model.language_model.blocks.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.lora_A.weight",
    ],
)
def test_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(Mismatch, match="belongs to no group of Qwen2-VL"):
        backbone.address(name)


def test_7b_is_addressed_completely(skeleton: Any) -> None:
    found = loading.misplaced(skeleton, {name: backbone.address(name) for name, _ in skeleton.named_parameters()})
    assert found == []
    parameters = dict(skeleton.named_parameters())
    assert len(parameters) == 730
    sizes: Counter[str] = Counter()
    for name, parameter in parameters.items():
        address = backbone.address(name)
        sizes["head" if address.component == "head" else address.group] += parameter.numel()
    millions = {group: round(size / 1e6, 1) for group, size in sizes.items()}
    assert millions == {"vision": 631.2, "connector": 44.6, "lm": 7070.6, "head": 545.0}
    assert set(ANCHORS) <= set(parameters)


def test_7b_layouts_go_both_ways(skeleton: Any) -> None:
    for name, _ in skeleton.named_parameters():
        for layout in names.LAYOUTS:
            assert backbone.canonical(names.on_disk(name, layout)) == name
    with pytest.raises(Mismatch, match="extra is no parameter of Qwen2-VL"):
        names.on_disk("model.extra", "published")


def test_canonical_agrees_with_transformers(skeleton: Any) -> None:
    """transformers' own tables (not public) map published and in-memory names onto the same names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(skeleton)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    state = skeleton.state_dict()
    for name in state:
        for layout in names.LAYOUTS:
            stored = names.on_disk(name, layout)
            theirs = rename_source_key(stored, renamings, converters, skeleton.base_model_prefix, state)[0]
            assert backbone.canonical(stored) == theirs == name


def test_linear_targets_of_7b(skeleton: Any) -> None:
    modules = [name for name, _ in skeleton.named_modules()]
    counts = {g: sum(bool(re.fullmatch(backbone.linear_targets(g), m)) for m in modules) for g in names.LINEAR_TARGETS}
    assert counts == {"lm": 28 * 7, "vision": 32 * 4, "connector": 2}


def test_tied_skeleton_has_no_head() -> None:
    small = backbone.skeleton(QWEN2_VL_7B | {"tie_word_embeddings": True})
    assert len(dict(small.named_parameters())) == 729
    assert loading.tied(small) == {"lm_head.weight": "model.language_model.embed_tokens.weight"}


def test_config_that_cannot_be_used() -> None:
    with pytest.raises(InputRefused, match="the model's config cannot be used"):
        backbone.skeleton(QWEN2_VL_7B | {"num_attention_heads": 27})
