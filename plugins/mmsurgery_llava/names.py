"""Parameter names of LLaVA: on disk, in memory, and where they sit in the model. Tables, no torch."""

from __future__ import annotations

import re

from mmsurgery.errors import Mismatch
from mmsurgery.names import Address, unwrapped

_LANGUAGE = "model.language_model."
_VISION = "model.vision_tower."
_CONNECTOR = "model.multi_modal_projector."
_HEAD = "lm_head."

_OLD = (
    ("language_model.model.", _LANGUAGE),
    ("language_model.lm_head.", _HEAD),
    ("multi_modal_projector.", _CONNECTOR),
)

LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "published": (*_OLD, ("vision_tower.vision_model.", _VISION)),
    "resaved": (*_OLD, ("vision_tower.", _VISION)),
    "memory": tuple((prefix, prefix) for prefix in (_LANGUAGE, _VISION, _CONNECTOR, _HEAD)),
    "memory_5_0": tuple(
        (prefix + "vision_model." if prefix == _VISION else prefix, prefix)
        for prefix in (_LANGUAGE, _VISION, _CONNECTOR, _HEAD)
    ),
}
"""Layouts of names on disk, as pairs of prefixes (stored, canonical): the published checkpoints, a model
built from a config and saved, in-memory names (`save_original_format=False`), and those of transformers 5.0."""

_STORED = sorted({pair for pairs in LAYOUTS.values() for pair in pairs}, key=lambda pair: -len(pair[0]))

_COMPONENTS = {
    _VISION: {
        "embeddings.class_embedding": "embed",
        "embeddings.patch_embedding.*": "embed",
        "embeddings.position_embedding.*": "embed",
        "pre_layrnorm.*": "norm",
        "post_layernorm.*": "norm",
        "encoder.layers.#.self_attn.q_proj.*": "attn.q",
        "encoder.layers.#.self_attn.k_proj.*": "attn.k",
        "encoder.layers.#.self_attn.v_proj.*": "attn.v",
        "encoder.layers.#.self_attn.out_proj.*": "attn.o",
        "encoder.layers.#.mlp.fc1.*": "mlp.fc1",
        "encoder.layers.#.mlp.fc2.*": "mlp.fc2",
        "encoder.layers.#.layer_norm1.*": "norm",
        "encoder.layers.#.layer_norm2.*": "norm",
    },
    _CONNECTOR: {"linear_1.*": "proj", "linear_2.*": "proj"},
    _LANGUAGE: {
        "embed_tokens.*": "embed",
        "norm.*": "norm",
        "layers.#.self_attn.q_proj.*": "attn.q",
        "layers.#.self_attn.k_proj.*": "attn.k",
        "layers.#.self_attn.v_proj.*": "attn.v",
        "layers.#.self_attn.o_proj.*": "attn.o",
        "layers.#.mlp.gate_proj.*": "mlp.gate",
        "layers.#.mlp.up_proj.*": "mlp.up",
        "layers.#.mlp.down_proj.*": "mlp.down",
        "layers.#.input_layernorm.*": "norm",
        "layers.#.post_attention_layernorm.*": "norm",
    },
    _HEAD: {"*": "head"},
}
_GROUPS = {_VISION: "vision", _CONNECTOR: "connector", _LANGUAGE: "lm", _HEAD: "lm"}
_PARAMETERS = {
    prefix + module: (_GROUPS[prefix], component)
    for prefix, modules in _COMPONENTS.items()
    for module, component in modules.items()
}
"""Pattern of names (`#` a layer number, `*` weight or bias) -> group and component."""

LINEAR_TARGETS = {
    "lm": r"^model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)$",
    "vision": r"^model\.vision_tower\.encoder\.layers\.\d+\.(self_attn\.((q|k|v)_proj|out_proj)|mlp\.fc[12])$",
    "connector": r"^model\.multi_modal_projector\.linear_[12]$",
}
"""Group -> full-match regular expression over module names: its linear layers, the head left out."""

_ZERO_GRADIENT = re.compile(r"model\.vision_tower\.encoder\.layers\.\d+\.self_attn\.k_proj\.bias")


def canonical(stored: str) -> str:
    """The canonical name of a stored name of any layout, wrapper prefixes removed; a name that
    belongs to no layout comes back as it is, for `address` to refuse."""
    name = unwrapped(stored)
    for prefix, replacement in _STORED:
        if name.startswith(prefix):
            return replacement + name[len(prefix) :]
    return name


def on_disk(name: str, layout: str) -> str:
    """The name that a canonical name has in a checkpoint file of `layout` (a key of `LAYOUTS`).

    Raises:
        Mismatch: if the name belongs to no group of LLaVA.
    """
    for prefix, canonical_prefix in LAYOUTS[layout]:
        if name.startswith(canonical_prefix):
            return prefix + name[len(canonical_prefix) :]
    raise Mismatch(f"{name} is no parameter of LLaVA", "name a LLaVA-1.5 checkpoint of transformers' own")


def address(name: str) -> Address:
    """Group, layer and component of a canonical parameter name.

    Raises:
        Mismatch: if LLaVA (CLIP vision tower, Llama-like language model) has no such parameter.
    """
    layer = re.search(r"\.layers\.(\d+)\.", name)
    pattern = re.sub(r"\.layers\.\d+\.", ".layers.#.", re.sub(r"\.(weight|bias)$", ".*", name))
    found = _PARAMETERS.get(pattern)
    if found is None:
        raise Mismatch(
            f"{name} belongs to no group of LLaVA (CLIP vision tower, projector, Llama-like language model)",
            "name a LLaVA-1.5 checkpoint of transformers' own",
        )
    return Address(found[0], int(layer[1]) if layer else None, found[1])


def no_true_gradient(name: str) -> bool:
    """CLIP key biases: softmax does not change when one number is added to all its logits."""
    return _ZERO_GRADIENT.fullmatch(name) is not None
