"""Parameter names of Qwen2-VL: on disk, in memory, and where they sit in the model. Tables, no torch."""

from __future__ import annotations

import re

from mmsurgery.errors import Mismatch
from mmsurgery.names import Address, unwrapped

_LANGUAGE = "model.language_model."
_VISION = "model.visual."
_CONNECTOR = "model.visual.merger."
_HEAD = "lm_head."

LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "published": (
        ("model.embed_tokens.", _LANGUAGE + "embed_tokens."),
        ("model.layers.", _LANGUAGE + "layers."),
        ("model.norm.", _LANGUAGE + "norm."),
        ("visual.", _VISION),
        (_HEAD, _HEAD),
    ),
    "memory": tuple((prefix, prefix) for prefix in (_LANGUAGE, _VISION, _HEAD)),
}
"""Layouts of names on disk, as pairs of prefixes (stored, canonical): the published checkpoints, which
transformers writes by default, and in-memory names (`save_original_format=False`)."""

_STORED = sorted({pair for pairs in LAYOUTS.values() for pair in pairs}, key=lambda pair: -len(pair[0]))

_COMPONENTS = {
    _VISION: {
        "patch_embed.proj.*": "embed",
        "blocks.#.attn.qkv.*": "attn.qkv",
        "blocks.#.attn.proj.*": "attn.o",
        "blocks.#.mlp.fc1.*": "mlp.fc1",
        "blocks.#.mlp.fc2.*": "mlp.fc2",
        "blocks.#.norm1.*": "norm",
        "blocks.#.norm2.*": "norm",
    },
    _CONNECTOR: {"ln_q.*": "norm", "mlp.0.*": "proj", "mlp.2.*": "proj"},
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
    "vision": r"^model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])$",
    "connector": r"^model\.visual\.merger\.mlp\.[02]$",
}
"""Group -> full-match regular expression over module names: its linear layers, the head left out."""


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
        Mismatch: if the name belongs to no group of Qwen2-VL.
    """
    for prefix, canonical_prefix in LAYOUTS[layout]:
        if name.startswith(canonical_prefix):
            return prefix + name[len(canonical_prefix) :]
    raise Mismatch(f"{name} is no parameter of Qwen2-VL", "name a Qwen2-VL checkpoint of transformers' own")


def address(name: str) -> Address:
    """Group, layer and component of a canonical parameter name. The connector (`merger`) sits inside
    the vision encoder and is none of it.

    Raises:
        Mismatch: if Qwen2-VL has no such parameter.
    """
    layer = re.search(r"\.(layers|blocks)\.(\d+)\.", name)
    pattern = re.sub(r"\.(layers|blocks)\.\d+\.", r".\1.#.", re.sub(r"\.(weight|bias)$", ".*", name))
    found = _PARAMETERS.get(pattern)
    if found is None:
        raise Mismatch(
            f"{name} belongs to no group of Qwen2-VL (vision blocks, merger, Qwen2 language model)",
            "name a Qwen2-VL checkpoint of transformers' own",
        )
    return Address(found[0], int(layer[2]) if layer else None, found[1])
