"""Masks: packing, algebra, the file's layout and size, and what is refused on reading."""

from __future__ import annotations

import json
import math
import operator
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flips, mutations
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mmsurgery.artifacts.mask import Mask, MaskParameter, count_ones, pack, unpack
from mmsurgery.artifacts.tensors import read_header, write_safetensors
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UsageError
from mmsurgery.masks.rule import check_beta
from mmsurgery.names import Address, Selector
from mmsurgery.provenance import canonical_json, provenance, seal

BASE = {"model_type": "llava", "model_sha256": "ab" * 32}
ADDRESSES = [
    Address("lm", 0, "attn.q"),
    Address("lm", 11, "mlp.up"),
    Address("lm", None, "embed"),
    Address("vision", 2, "norm"),
    Address("connector", None, "proj"),
]
SHAPES = [(n,) for n in range(18)] + [(), (3, 5), (0, 4), (2, 3, 4), (1, 1)]


def random_mask(seed: int, **changes: Any) -> Mask:
    generator = np.random.default_rng(seed)
    values = {f"p{i:02d}": generator.random(shape) < generator.random() for i, shape in enumerate(SHAPES)}
    parameters = {
        name: MaskParameter(value.shape, ADDRESSES[i % 5], pack(value))
        for i, (name, value) in enumerate(values.items())
    }
    made = {"rule": "ratio", "beta": 1.0, "estimator": "sample", "mixture": "pooled", "modules": "vision,connector,lm"}
    return Mask(parameters=parameters, base=BASE, provenance=provenance("mask", {}, {}), **(made | changes))


def same(one: Mask, other: Mask) -> bool:
    fields = ("rule", "beta", "estimator", "mixture", "modules", "base", "parents", "counts")
    values = all(getattr(one, field) == getattr(other, field) for field in fields)
    bits = {n: (p.shape, p.address, p.bits.tobytes()) for n, p in one.parameters.items()} == {
        n: (p.shape, p.address, p.bits.tobytes()) for n, p in other.parameters.items()
    }
    return values and bits


# packing


@given(st.lists(st.booleans(), max_size=70))
def test_pack_and_unpack(values: list[bool]) -> None:
    bits = pack(np.array(values, bool))
    assert bits.size == (len(values) + 7) // 8
    # element i is bit i % 8 of byte i // 8; the rest is 0
    assert int.from_bytes(bits.tobytes(), "little") == sum(1 << i for i, value in enumerate(values) if value)
    assert unpack(bits, (len(values),)).tolist() == values
    assert count_ones(bits) == sum(values)


def test_pack_takes_c_order_of_any_layout() -> None:
    values = np.arange(24).reshape(4, 6) % 5 == 0
    for layout in (values, np.asfortranarray(values), np.repeat(values, 2, axis=1)[:, ::2]):
        assert np.array_equal(unpack(pack(layout), (4, 6)), values)


def test_more_than_2_to_the_31_elements() -> None:
    numel = 2**31 + 5
    bits = np.zeros((numel + 7) // 8, np.uint8)
    bits[-1] = 0b10001
    parameter = MaskParameter((numel,), ADDRESSES[0], bits)
    assert (parameter.numel, parameter.selected) == (numel, 2)


# looking


def test_densities() -> None:
    values = {
        "a": np.array([1, 1, 0, 0], bool),
        "b": np.array([1, 0], bool),
        "c": np.zeros(2, bool),
        "d": np.ones((), bool),
    }
    places = ["lm.0.attn.q", "lm.0.attn.q", "lm.embed", "vision.3.norm"]
    parameters = {
        n: MaskParameter(v.shape, Address.parse(p), pack(v)) for (n, v), p in zip(values.items(), places, strict=True)
    }
    mask = random_mask(0, modules="lm")
    mask = replace(mask, parameters=parameters)
    assert mask.density() == 4 / 9
    assert mask.density(by="group") == {"lm": 3 / 8, "vision": 1.0}
    assert mask.density(by="layer") == {"lm.0": 0.5, "lm": 0.0, "vision.3": 1.0}
    assert mask.density(by="component") == {"lm.0.attn.q": 0.5, "lm.embed": 0.0, "vision.3.norm": 1.0}
    assert mask.density(by="parameter") == {"a": 0.5, "b": 0.5, "c": 0.0, "d": 1.0}
    assert mask.tally("layer")["lm.0"] == (3, 6)
    with pytest.raises(UsageError, match="layers"):
        mask.density(by="layers")
    assert mask.in_modules() == {"a", "b", "c"}
    with pytest.raises(KeyError):
        mask["e"]
    assert mask["d"].shape == ()


# algebra

masks = st.integers(0, 2**32 - 1).map(random_mask)
quick = settings(max_examples=30, deadline=None)


@quick
@given(masks, masks)
def test_operators_are_those_of_booleans(a: Mask, b: Mask) -> None:
    pairs: list[tuple[Mask, Callable[[Any, Any], Any]]] = [
        (a & b, lambda x, y: x & y),
        (a | b, lambda x, y: x | y),
        (a ^ b, lambda x, y: x ^ y),
        (a - b, lambda x, y: x & ~y),
        (~a, lambda x, y: ~x),
    ]
    for found, operation in pairs:
        for name in a:
            assert np.array_equal(found[name], operation(a[name], b[name]))
        assert found.counts == {"selected": found.selected, "total": a.total}
        assert found.selected == sum(int(found[name].sum()) for name in found)


@quick
@given(masks, masks, masks)
def test_laws(a: Mask, b: Mask, c: Mask) -> None:
    def bits(mask: Mask) -> str:
        return mask.content_sha256

    assert bits(~(a & b)) == bits(~a | ~b)
    assert bits(~(a | b)) == bits(~a & ~b)
    assert bits(~~a) == bits(a)
    assert bits(a ^ b) == bits((a | b) - (a & b))
    assert bits(a - b) == bits(a & ~b)
    assert bits(a & (b | c)) == bits((a & b) | (a & c))
    assert (a ^ a).selected == 0
    assert (a | ~a).selected == a.total


def test_restrict() -> None:
    mask = random_mask(1)
    for text in ("lm", "lm.0-5", "vision,connector", "lm.11.mlp"):
        limited = mask.restrict(text)
        assert limited.modules == text
        assert (limited.rule, limited.beta) == ("ratio", 1.0)
        for name in mask:
            expected = (
                mask[name] if Selector(text).matches(mask.parameters[name].address) else np.zeros_like(mask[name])
            )
            assert np.array_equal(limited[name], expected)
    with pytest.raises(UsageError, match="matches no parameter"):
        mask.restrict("lm.3")


def test_modules_of_compositions() -> None:
    one, two = random_mask(0, modules="lm"), random_mask(1, modules="vision,lm")
    assert (one & two).modules == "lm"
    assert (one & ~two).modules == "lm"
    assert (one | two).modules == (one ^ two).modules == "lm,vision"
    three = random_mask(2, modules="lm.0-5,connector")
    assert (three & one).modules == "lm.0-5"
    assert (one - two).modules == "lm"
    assert (~one).modules == "vision,connector,lm"
    assert (one | two).rule == "compose"
    assert [p["content_sha256"] for p in (one | two).parents] == [one.content_sha256, two.content_sha256]


def test_masks_of_other_models_do_not_compose() -> None:
    mask = random_mask(0)
    with pytest.raises(Mismatch, match="different weights"):
        mask & replace(mask, base={**BASE, "model_sha256": "0" * 64})
    fewer = replace(mask, parameters={n: p for n, p in mask.parameters.items() if n not in ("p03", "p04")})
    with pytest.raises(Mismatch, match="p03, p04"):
        mask | fewer


# the file


@pytest.mark.parametrize("seed", range(4))
def test_saved_and_loaded_is_the_same(seed: int, tmp_path: Path) -> None:
    mask = random_mask(seed, parents=({"kind": "saliency", "part": "forget_vqa"},), counts={"selected": 3, "total": 9})
    mask.save(tmp_path / "mask.safetensors")
    loaded = Mask.load(str(tmp_path / "mask.safetensors"))
    assert same(mask, loaded)
    assert loaded.provenance["command"] == "mask"
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "mask.safetensors").read_bytes()


def test_layout_is_what_the_contract_says(tmp_path: Path) -> None:
    mask = random_mask(5)
    path = tmp_path / "mask.safetensors"
    mask.save(path)
    header = read_header(path)
    assert set(header.metadata) == {"mmsurgery"}
    value = json.loads(header.metadata["mmsurgery"])
    keys = "schema kind rule beta estimator mixture modules parameters base parents counts provenance"
    assert " ".join(sorted(value)) == " ".join(sorted(keys.split()))
    assert (value["schema"], value["kind"]) == (1, "mask")
    for name, info in header.tensors.items():
        assert (info.dtype, info.shape) == ("U8", ((mask.parameters[name].numel + 7) // 8,))
        assert set(value["parameters"][name]) == {"shape", "selected", "sha256", "address"}
    payload = sum((p.numel + 7) // 8 for p in mask.parameters.values())
    assert path.stat().st_size == 8 + header.bytes + payload
    assert header.metadata["mmsurgery"].encode() == canonical_json(value)


def test_other_libraries_read_it(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    mask = random_mask(6)
    mask.save(tmp_path / "mask.safetensors")
    found = load_file(tmp_path / "mask.safetensors")
    for name, p in mask.parameters.items():
        assert np.array_equal(found[name], p.bits)


def llava_7b() -> dict[str, tuple[int, ...]]:
    """All 686 parameters of LLaVA-1.5-7B."""
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (32064, 4096), "model.language_model.norm.weight": (4096,)}
    shapes["model.language_model.embed_tokens.weight"] = (32064, 4096)
    for layer in range(32):
        block = f"model.language_model.layers.{layer}."
        shapes |= {f"{block}self_attn.{x}_proj.weight": (4096, 4096) for x in "qkvo"}
        shapes |= {f"{block}mlp.{x}_proj.weight": (11008, 4096) for x in ("gate", "up")}
        shapes |= {f"{block}mlp.down_proj.weight": (4096, 11008)}
        shapes |= {f"{block}{x}_layernorm.weight": (4096,) for x in ("input", "post_attention")}
    tower = "model.vision_tower."
    shapes |= {
        f"{tower}embeddings.class_embedding": (1024,),
        f"{tower}embeddings.position_embedding.weight": (577, 1024),
    }
    shapes |= {f"{tower}embeddings.patch_embedding.weight": (1024, 3, 14, 14)}
    shapes |= {f"{tower}{x}.{y}": (1024,) for x in ("pre_layrnorm", "post_layernorm") for y in ("weight", "bias")}
    for layer in range(24):
        block = f"{tower}encoder.layers.{layer}."
        for x, rows, columns in [(f"self_attn.{p}_proj", 1024, 1024) for p in ("q", "k", "v", "out")] + [
            ("mlp.fc1", 4096, 1024),
            ("mlp.fc2", 1024, 4096),
        ]:
            shapes |= {f"{block}{x}.weight": (rows, columns), f"{block}{x}.bias": (rows,)}
        shapes |= {f"{block}layer_norm{i}.{y}": (1024,) for i in (1, 2) for y in ("weight", "bias")}
    shapes |= {
        f"model.multi_modal_projector.linear_{i}.{y}": s
        for i, c in ((1, 1024), (2, 4096))
        for y, s in (("weight", (4096, c)), ("bias", (4096,)))
    }
    return shapes


def test_header_of_a_7b_mask_keeps_its_size(tmp_path: Path) -> None:
    shapes = llava_7b()
    assert len(shapes) == 686
    address = backbone("llava").address
    parents = tuple(
        {
            "kind": "saliency",
            "part": part,
            "estimator": "sample",
            "batch_size": None,
            "units": 2495,
            "data_sha256": "d" * 64,
            "sha256": "e" * 64,
        }
        for part in ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")
    )
    inputs = {"model_sha256": "f" * 64, "saliency": {str(parent["part"]): "e" * 64 for parent in parents}}
    settings = {
        "beta": 1.0,
        "mixture": "pooled",
        "modules": "vision,connector,lm",
        "estimator": "sample",
        "batch_size": None,
        "control": None,
        "seed": None,
    }
    # bits shared by all tensors: the header depends on the shapes and counts alone, the payload is not what is tested
    mask = Mask(
        rule="ratio",
        beta=1.0,
        estimator="sample",
        mixture="pooled",
        modules="vision,connector,lm",
        parameters={n: MaskParameter(s, address(n), np.ones(1, np.uint8)) for n, s in shapes.items()},
        base=BASE,
        parents=parents,
        counts={"selected": 3 * 10**9, "total": 7 * 10**9, "zero_over_zero": 10**8, "no_gradient": 10**8},
        provenance={
            **provenance("mask", settings, inputs),
            "tied": {"lm_head.weight": "model.language_model.embed_tokens.weight"},
        },
    )
    mask.save(tmp_path / "mask.safetensors")
    header = read_header(tmp_path / "mask.safetensors")
    # selected counts and offsets of real tensors have up to 8 and 9 more digits each
    longest = header.bytes + 686 * (8 + 2 * 9 + 7)
    assert longest <= 512 * 686 + 4096
    fixed = len(canonical_json(json.loads(header.metadata["mmsurgery"]) | {"parameters": {}}))
    assert fixed + fixed // 4 <= 4096  # quotation marks are escaped in the header


# refusals


def write(path: Path, tensors: dict[str, np.ndarray], value: Any, key: str = "mmsurgery") -> Path:
    write_safetensors(path, tensors, {key: json.dumps(value)})
    return path


@pytest.fixture
def parts(tmp_path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of a good mask."""
    mask = random_mask(7)
    mask.save(tmp_path / "good.safetensors")
    value = json.loads(read_header(tmp_path / "good.safetensors").metadata["mmsurgery"])
    return {name: p.bits for name, p in mask.parameters.items()}, value


def changed(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    """A copy with one entry set (or removed, for `...`), sealed anew."""
    copy = json.loads(json.dumps(value))
    *walk, last = path.split("/")
    place = copy
    for key in walk:
        place = place[key]
    if new is ...:
        del place[last]
    else:
        place[last] = new
    return seal(copy) if isinstance(copy.get("provenance"), dict) else copy


CHANGES: list[tuple[str, Any]] = [
    ("kind", "saliency"),
    ("rule", 3),
    ("beta", "1"),
    ("beta", [1]),
    ("modules", "language"),
    ("modules", ""),
    ("modules", None),
    ("base", {}),
    ("base", {"model_type": "llava", "model_sha256": 3}),
    ("parents", {}),
    ("parents", [3]),
    ("counts", {"selected": "many"}),
    ("counts", [1]),
    ("provenance", []),
    ("parameters", []),
    ("extra", 1),
    ("mixture", ...),
    ("parameters/p09", ...),
    ("parameters/p99", {"shape": [], "selected": 0, "sha256": "", "address": "lm.embed"}),
    ("parameters/p09", 3),
    ("parameters/p09/shape", [17]),
    ("parameters/p09/shape", [1]),
    ("parameters/p09/shape", [-9]),
    ("parameters/p09/shape", [9.0]),
    ("parameters/p09/shape", [True]),
    ("parameters/p09/shape", "9"),
    ("parameters/p09/shape", [1] * 8 + [9]),
    ("parameters/p00/shape", [0, 10**30]),
    ("parameters/p09/selected", 77),
    ("parameters/p09/selected", None),
    ("parameters/p09/sha256", "0" * 64),
    ("parameters/p09/sha256", ...),
    ("parameters/p09/address", "lm.attn"),
    ("parameters/p09/address", "lm.00.attn.q"),
    ("parameters/p09/address", "lm.²..attn.q"),
    ("parameters/p09/address", "lm." + "9" * 5000 + ".attn.q"),
    ("parameters/p09/address", None),
]


@pytest.mark.parametrize(("path", "new"), CHANGES, ids=[f"{p}-{i}" for i, (p, _) in enumerate(CHANGES)])
def test_sealed_nonsense_is_refused(
    path: str, new: Any, parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path
) -> None:
    tensors, value = parts
    with pytest.raises(InputRefused) as caught:
        Mask.load(write(tmp_path / "bad.safetensors", tensors, changed(value, path, new)))
    assert caught.value.code == 3
    assert "\n" not in caught.value.line()
    assert caught.value.next_step
    assert "bad.safetensors" in caught.value.what


A_MASK = {"kind": "mask", "rule": "ratio", "modules": "lm", "content_sha256": "c" * 64}
A_PART = {"kind": "saliency", "part": "forget_vqa"}
FIELDS: list[tuple[str, Any, str]] = [
    ("beta", True, "beta is true, a number or null expected"),
    ("beta", {"a": 1}, "beta is a table, a number or null expected"),
    ("rule", None, "rule is null, text expected"),
    ("mixture", ..., "mixture is missing"),
    ("extra", 1, "has unknown keys: extra"),
    ("counts", {"selected": -1}, "counts is a table, a table of whole numbers expected"),
    ("base", {"model_type": "llava"}, "base.model_sha256 is missing"),
    ("base/name", "x", "base has unknown keys: name"),
    ("parents", [A_PART, 3], r"parents\[1\] is no table of kind"),
    ("parents", [{**A_PART, "kind": "model"}], r"parents\[0\] is no table of kind"),
    ("parents", [{"kind": []}], r"parents\[0\] is no table of kind"),
    ("parents", [{"kind": "saliency"}], r"parents\[0\].part is missing"),
    ("parents", [{**A_PART, "part": 1}], r"parents\[0\].part is 1, text expected"),
    ("parents", [{**A_PART, "units": "7"}], r"parents\[0\].units is '7', a whole number expected"),
    ("parents", [{**A_PART, "batch_size": -1}], r"parents\[0\].batch_size is -1"),
    ("parents", [{**A_PART, "data_sha256": "d"}], r"parents\[0\].data_sha256 is 'd', a SHA-256"),
    ("parents", [{**A_PART, "sha256": None}], r"parents\[0\].sha256 is null"),
    ("parents", [{"kind": "mask"}], r"parents\[0\].rule is missing"),
    ("parents", [A_MASK, {**A_MASK, "content_sha256": "C" * 64}], r"parents\[1\].content_sha256 is 'CC"),
    (
        "parents",
        [{k: v for k, v in A_MASK.items() if k != "content_sha256"}],
        r"parents\[0\].content_sha256 is missing",
    ),
    ("parents", [{**A_MASK, "modules": ["lm"]}], r"parents\[0\].modules is a list"),
    ("parents", [{**A_MASK, "name": 3}], r"parents\[0\].name is 3"),
    ("provenance/command", 1, "provenance.command is 1, text expected"),
    ("provenance/settings", [], "provenance.settings is a list, a table expected"),
    ("provenance/inputs", "x", "provenance.inputs is 'x', a table expected"),
    ("provenance/inputs", [["model_sha256", "0"]], "provenance.inputs is a list, a table expected"),
    ("provenance/versions", {"mmsurgery": 1}, "provenance.versions is a table, a table of texts expected"),
    ("provenance/key", "x", "provenance.key is 'x', a SHA-256"),
]
SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "schemas" / "mask.json"


@pytest.mark.parametrize(("path", "new", "message"), FIELDS, ids=[f"{f[0]}-{i}" for i, f in enumerate(FIELDS)])
def test_reader_and_schema_agree_on_what_a_field_must_be(
    path: str, new: Any, message: str, parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path
) -> None:
    bad = changed(parts[1], path, new)
    assert not Draft202012Validator(json.loads(SCHEMA_FILE.read_text())).is_valid(bad)
    with pytest.raises(InputRefused, match=f"bad.safetensors:? {message}") as caught:
        Mask.load(write(tmp_path / "bad.safetensors", parts[0], bad))
    assert "docs/formats.md" in str(caught.value.next_step)


def test_parents_of_every_kind_that_is_written_are_read(
    parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path
) -> None:
    whole = {**A_PART, "estimator": "batch", "batch_size": 4, "units": 7, "data_sha256": "d" * 64, "sha256": "e" * 64}
    of_a_control = {key: value for key, value in A_MASK.items() if key != "modules"}
    parents = [A_PART, whole, {**whole, "batch_size": None}, A_MASK, {**A_MASK, "name": "npo"}, of_a_control]
    good = changed(parts[1], "parents", parents)
    assert Draft202012Validator(json.loads(SCHEMA_FILE.read_text())).is_valid(good)
    assert list(Mask.load(write(tmp_path / "good.safetensors", parts[0], good)).parents) == parents


def test_a_seal_of_ours_may_not_be_taken_off(
    parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path
) -> None:
    tensors, value = parts
    schema = Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    origin = {key: entry for key, entry in value["provenance"].items() if key != "seal"}
    bare = {**value, "provenance": origin}
    assert schema.is_valid(value)
    assert not schema.is_valid(bare)
    with pytest.raises(InputRefused, match=r"provenance\.seal is missing") as caught:
        Mask.load(write(tmp_path / "bare.safetensors", tensors, bare))
    assert "versions" in str(caught.value.next_step)
    with pytest.raises(InputRefused, match="was changed or damaged"):
        Mask.load(write(tmp_path / "other.safetensors", tensors, {**value, "rule": "random"}))
    for foreign in ({**origin, "versions": {"numpy": "2"}}, {k: v for k, v in origin.items() if k != "versions"}):
        of_another = {**value, "provenance": foreign}
        assert schema.is_valid(of_another)
        assert Mask.load(write(tmp_path / "foreign.safetensors", tensors, of_another)).provenance == foreign


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("lm", r"modules 'lm' leave out p03 \(vision.2.norm\), where \d bits are set"),
        ("vision,connector,lm.0", r"modules 'vision,connector,lm.0' leave out p01 \(lm.11.mlp.up\)"),
        ("vision,connector,lm.1", "modules: selector 'lm.1' matches no parameter"),
        ("vision,connector,lm,lm.0-12", "modules: selector 'lm.0-12' goes beyond the last layer"),
    ],
)
def test_modules_that_contradict_the_bits_are_refused(modules: str, message: str, tmp_path: Path) -> None:
    replace(random_mask(2), modules=modules).save(tmp_path / "bad.safetensors")
    with pytest.raises(InputRefused, match=f"bad.safetensors: {message}") as caught:
        Mask.load(tmp_path / "bad.safetensors")
    assert caught.value.next_step


def test_modules_that_name_all_that_is_selected_are_enough(tmp_path: Path) -> None:
    mask = random_mask(2).restrict("connector,lm.11")
    for modules in ("connector,lm.11", "lm,connector", "connector, lm.11.mlp"):
        replace(mask, modules=modules).save(tmp_path / "good.safetensors")
        assert Mask.load(tmp_path / "good.safetensors").modules == modules


def test_a_newer_schema_is_a_mismatch(parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match="schema 2") as caught:
        Mask.load(write(tmp_path / "new.safetensors", parts[0], changed(parts[1], "schema", 2)))
    assert caught.value.next_step == "pip install -U mmsurgery"


def test_changed_tensors_are_refused(parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path) -> None:
    tensors, value = parts
    bad = {
        "swapped": {**tensors, "p09": tensors["p10"], "p10": tensors["p09"]},
        "dtype": {**tensors, "p08": tensors["p08"].view(np.int8)},
        "2-d": {**tensors, "p09": tensors["p09"].reshape(1, 2)},
        "missing": {n: t for n, t in tensors.items() if n != "p09"},
        "surplus": {**tensors, "p99": tensors["p09"]},
        "short": {**tensors, "p09": tensors["p09"][:1]},
    }
    for why, changed_tensors in bad.items():
        with pytest.raises(InputRefused) as caught:
            Mask.load(write(tmp_path / f"{why}.safetensors", changed_tensors, value))
        assert caught.value.next_step, why


def test_pad_bits_must_be_zero(parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path) -> None:
    from mmsurgery.provenance import sha256

    tensors, value = parts
    padded = tensors["p09"].copy()
    padded[-1] |= 0b10000000
    value = changed(value, "parameters/p09/sha256", sha256(padded.tobytes()))
    value = changed(value, "parameters/p09/selected", count_ones(padded))
    with pytest.raises(InputRefused, match="pad bits"):
        Mask.load(write(tmp_path / "pad.safetensors", {**tensors, "p09": padded}, value))


def test_an_unsealed_mask_of_another_tool_is_read(
    parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path
) -> None:
    tensors, value = parts
    assert Mask.load(write(tmp_path / "foreign.safetensors", tensors, {**value, "provenance": {}})).selected > 0


def test_other_safetensors_files_are_no_masks(
    parts: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path
) -> None:
    tensors, value = parts
    with pytest.raises(InputRefused, match="no mask"):
        Mask.load(write(tmp_path / "a.safetensors", tensors, value, key="format"))
    write_safetensors(tmp_path / "b.safetensors", tensors, {})
    with pytest.raises(InputRefused, match="no mask") as caught:
        Mask.load(tmp_path / "b.safetensors")
    assert caught.value.next_step == "name a mask: mmsurgery status lists them"
    for text, said in (('{"kind": "patch"}', "it says that it is a patch"), ("[1]", "it does not say what it is")):
        write_safetensors(tmp_path / "b.safetensors", tensors, {"mmsurgery": text})
        with pytest.raises(InputRefused, match=f"no mask of mmsurgery: {said}") as caught:
            Mask.load(tmp_path / "b.safetensors")
        assert caught.value.next_step == "name a mask: mmsurgery status lists them"
    for text in ("[]", "3", "{", '{"a": 1, "a": 2}', '{"schema": NaN}', '"\\ud800"'):
        write_safetensors(tmp_path / "c.safetensors", tensors, {"mmsurgery": text})
        with pytest.raises(InputRefused):
            Mask.load(tmp_path / "c.safetensors")
    with pytest.raises(MissingArtifact):
        Mask.load(tmp_path / "none.safetensors")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mask, bytes]:
    shapes = [(13,), (2, 8), ()]
    values = [np.random.default_rng(i).random(shape) < 0.5 for i, shape in enumerate(shapes)]
    parameters = {f"lm.p{i}": MaskParameter(v.shape, ADDRESSES[i], pack(v)) for i, v in enumerate(values)}
    mask = replace(random_mask(0), parameters=parameters, modules="lm")
    path = tmp_path_factory.mktemp("small") / "mask.safetensors"
    mask.save(path)
    assert same(mask, Mask.load(path))
    return mask, path.read_bytes()


def survives(mask: Mask, data: bytes, path: Path) -> bool:
    """Whether a damaged file is refused, or leaves every value as it was."""
    path.write_bytes(data)
    try:
        return same(mask, Mask.load(path))
    except InputRefused:
        return True
    except Mismatch as error:
        return "schema" in error.what


def test_no_flipped_bit_goes_unnoticed(small_file: tuple[Mask, bytes], tmp_path: Path) -> None:
    mask, data = small_file
    bad = [i for i, variant in enumerate(flips(data, 0)) if not survives(mask, variant, tmp_path / "m")]
    assert bad == []


def test_no_damage_goes_unnoticed(small_file: tuple[Mask, bytes], tmp_path: Path) -> None:
    mask, data = small_file
    for index, variant in enumerate(mutations(data, 0, 600)):
        assert survives(mask, variant, tmp_path / "m"), index


def test_a_file_that_claims_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a sparse file of 8 TiB with a header that agrees with it
    monkeypatch.setattr("mmsurgery.artifacts.files._MAX_RATIO", 1 << 50)  # holes are refused before
    numel = 8 << 40
    random_mask(0).save(tmp_path / "mask.safetensors")
    value = seal(
        json.loads(read_header(tmp_path / "mask.safetensors").metadata["mmsurgery"])
        | {"parameters": {"p": {"shape": [numel * 8 - 1], "selected": 0, "sha256": "", "address": "lm.embed"}}}
    )
    header = {
        "__metadata__": {"mmsurgery": json.dumps(value)},
        "p": {"dtype": "U8", "shape": [numel], "data_offsets": [0, numel]},
    }
    raw = json.dumps(header).encode()
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    try:
        with path.open("r+b") as handle:
            handle.truncate(8 + len(raw) + numel)
    except OSError:
        pytest.skip("the file system has no sparse files of 8 TiB")
    with pytest.raises(InputRefused, match="memory"):
        Mask.load(path)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1.0), ("0.5", 0.5), (".5", 0.5), ("1e-3", 1e-3), ("+2.", 2.0), (3, 3.0)]
)
def test_beta(text: Any, value: float) -> None:
    assert check_beta(text) == value


def test_counts_are_python_integers() -> None:
    mask = random_mask(3)
    assert type(mask.selected) is type(mask.total) is int
    assert math.isclose(mask.density(), mask.selected / mask.total)


def test_equal_masks_do_the_same_however_they_were_made(tmp_path: Path) -> None:
    mask = random_mask(0)
    mask.save(str(tmp_path / "mask.safetensors"))
    loaded = Mask.load(tmp_path / "mask.safetensors")
    assert (loaded == mask, hash(loaded) == hash(mask), len({mask, loaded, mask & mask})) == (True, True, 1)
    assert mask != ~mask
    assert mask != replace(mask, modules="lm.0")
    assert mask != replace(mask, base={**mask.base, "model_sha256": "other"})
    assert mask != 1


def test_operators_leave_foreign_types_to_python() -> None:
    mask = random_mask(0)
    for combine in (operator.and_, operator.or_, operator.xor, operator.sub):
        with pytest.raises(TypeError, match="unsupported operand"):
            combine(mask, 1)


def test_a_missing_folder_is_not_made_for_a_mask(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        random_mask(0).save(tmp_path / "none" / "mask.safetensors")
    assert not (tmp_path / "none").exists()
